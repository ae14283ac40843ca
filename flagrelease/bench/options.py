"""Options that the benchmarks have in common: lists of numbers, and the file of a drawing."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from flagrelease.errors import ResourceError, UsageError


def comma_numbers(option: str, text: str) -> tuple[int, ...]:
    """`1,16,64`; nothing at all is no rows.

    Raises:
        UsageError: something else than numbers from 1 on.
    """
    words = text.split(",") if text else []
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"{option} {text!r}: numbers from 1 on, with commas between")
    return tuple(int(word) for word in words)


def write_plot(path: Path, drawing: str) -> None:
    """After the results, which are on stdout by now: what goes wrong is only talk, and the exit code.

    Raises:
        typer.Exit: the file cannot be written.
    """
    try:
        path.write_text(drawing, encoding="utf-8")
    except OSError as error:
        print(f"flagrelease: {path}: not drawn: {error.strerror}", file=sys.stderr)
        raise typer.Exit(ResourceError.exit_code) from error
