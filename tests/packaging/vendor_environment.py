"""A vendor's environment made by hand: distributions with a version like theirs, whose files say what they hold."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path


def plant(packages: Path, name: str, version: str, files: Mapping[str, str] = {}, requires: Iterable[str] = ()) -> None:
    """Put a distribution into the folder `packages` as pip would have: its files, METADATA and RECORD."""
    folder = packages / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    (folder / "INSTALLER").write_text("pip\n")
    for path, text in files.items():
        (packages / path).parent.mkdir(parents=True, exist_ok=True)
        (packages / path).write_text(text)
    own = [f"{folder.name}/{name}" for name in ("METADATA", "INSTALLER")]
    record = [_line(packages, path) for path in (*files, *own)]
    (folder / "RECORD").write_text("\n".join([*record, f"{folder.name}/RECORD,,"]) + "\n")


def _line(packages: Path, path: str) -> str:
    content = (packages / path).read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{path},sha256={digest},{len(content)}"
