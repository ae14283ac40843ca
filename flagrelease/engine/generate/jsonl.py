"""JSONL files: a JSON document a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flagrelease.errors import UsageError


def read_lines(path: Path) -> list[Any]:
    """The documents; empty lines do not count.

    Raises:
        UsageError: the file cannot be read, or a line is not JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from error
