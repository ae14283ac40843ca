"""Which files of a working tree are new work, by git: what is compiled first."""

from __future__ import annotations

import subprocess
from pathlib import Path


def changed_files(root: Path, branch: str = "main") -> list[str]:
    """Files under `root` that differ from where HEAD left `branch`, or, on it, from the commit before.

    Paths are relative to `root`. None where git, its folder or an older commit is not there, as in an archive.
    """
    base = _git(root, "merge-base", "HEAD", branch)
    if not base or base == _git(root, "rev-parse", "HEAD"):
        base = "HEAD~1"
    return _git(root, "diff", "--name-only", "--relative", base).splitlines()


def _git(root: Path, *words: str) -> str:
    try:
        ran = subprocess.run(["git", "-C", str(root), *words], check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""
