"""`convert` from an installation that nobody may write to: numba found no folder for its cache and died.

A cut index in that cache (`.nbi`) ended every later run with UnpicklingError. Nothing is cached now.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "examples" / "tiny" / "flagrelease-tiny-v4"
NOWHERE = "/proc/nowhere"  # not even root can make a folder there


def test_nothing_of_an_installation_is_written_and_no_home_is_needed(tmp_path: Path) -> None:
    package = shutil.copytree(ROOT / "flagrelease", tmp_path / "site" / "flagrelease")
    for name in ("_decode", "_count", "_contains"):
        index = next(
            n for n, line in enumerate((package / "convert" / "codecs" / "lookup.py").read_text().splitlines(), 1)
            if line.startswith(f"def {name}(")
        ) - 1  # fmt: skip
        cache = package / "convert" / "codecs" / "__pycache__"
        cache.mkdir(exist_ok=True)
        version = f"py{sys.version_info[0]}{sys.version_info[1]}"
        (cache / f"lookup.{name}-{index}.{version}.nbi").write_bytes(b"\x80\x05")
    before = {path: path.read_bytes() for path in package.rglob("*.nb?")}
    environment = os.environ | {
        "PYTHONPATH": str(package.parent), "HOME": NOWHERE, "XDG_CACHE_HOME": NOWHERE, "NUMBA_CACHE_DIR": NOWHERE,
        "PYTHONDONTWRITEBYTECODE": "1", "IPYTHONDIR": NOWHERE,
    }  # fmt: skip
    words = ["convert", str(SOURCE), "--target", "fp8:hf", "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "flagrelease", *words], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in package.rglob("*.nb?")} == before
