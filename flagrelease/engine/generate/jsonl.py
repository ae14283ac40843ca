"""JSONL files: a JSON document a line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from flagrelease.errors import UsageError

STDIN = Path("-")


class Line(NamedTuple):
    """A document and the number of its line, from 1."""

    number: int
    document: Any


def read_lines(path: Path) -> list[Line]:
    """The documents of a file, or of standard input for "-". Empty lines hold none, but count for the numbers.

    A line ends at a line feed only: JSON strings may hold every other character that Unicode calls a line's end.

    Raises:
        UsageError: the file cannot be read, or a line is not JSON in UTF-8; the message has the line's number.
    """
    try:
        held = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    lines = []
    for number, line in enumerate(held.split(b"\n"), 1):
        if line.strip():
            try:
                lines.append(Line(number, json.loads(line.decode("utf-8"))))
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{shown(path)}: line {number}: not JSON in UTF-8 ({error})") from error
    return lines


def shown(path: Path) -> str:
    """A file's name in messages."""
    return "standard input" if path == STDIN else str(path)
