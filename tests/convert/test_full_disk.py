"""A disk that fills up under the command line: the documented exit code, one line, and a run that resumes.

RLIMIT_FSIZE stands for the disk: the system refuses every write beyond the limit (EFBIG), in the middle of a file.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from harness import contents, plan_of, run_plan

_DRIVER = """
import resource, sys
from flagrelease.convert.running import chunks, lanes
from flagrelease.shard import writer
writer.BLOCK_BYTES = chunks.CHUNK_BYTES = 16 << 10
lanes.CHECKPOINT_BYTES = 32 << 10
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
from flagrelease.cli import main
sys.exit(main(sys.argv[1:]))
"""


def convert(checkpoint: Path, out: Path, limit: int) -> subprocess.CompletedProcess[str]:
    words = ["convert", str(checkpoint), "--target", "native:hf", "--target", "bf16:mp2", "--out", str(out)]
    command = [sys.executable, "-c", _DRIVER, str(limit), *words, "--workers", "2"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    run_plan(plan_of(checkpoint, "native:hf", "bf16:mp2"), out)
    return contents(out)


@pytest.mark.parametrize("share", [0.0, 0.3, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.001, 0.9))])
def test_a_full_disk_ends_with_its_code_and_the_same_command_resumes(
    checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path, share: float
) -> None:
    largest = max(len(content) for content in undisturbed.values())
    done = convert(checkpoint, tmp_path / "out", int(largest * share))
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"resource: .*cannot be written \(File too large\)", done.stderr), done.stderr
    assert not list((tmp_path / "out").glob("*/manifest.json"))
    again = convert(checkpoint, tmp_path / "out", resource.RLIM_INFINITY)
    assert again.returncode == 0, again.stderr
    if share == 0.9:
        assert "resuming: an earlier run had written" in again.stderr
    assert contents(tmp_path / "out") == undisturbed
