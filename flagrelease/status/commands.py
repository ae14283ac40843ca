"""The command line of an output folder: status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flagrelease import console

_EXAMPLE = "Example: flagrelease status releases"


def register(app: typer.Typer) -> None:
    """Add `status` to `app`."""
    app.command(epilog=_EXAMPLE)(status)


def status(
    out: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --out of convert or run, or a release.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of text.")] = False,
) -> None:
    """Show what an output folder holds: releases done or how far, proofs, publications, and what is missing, by chip.

    Only records and sizes are looked at: `verify` reads the bytes. The exit code is 0 whatever is missing.
    """
    from flagrelease.status.display import show_status
    from flagrelease.status.folder import look_at

    with console.status(f"reading the records in {out}"):
        found = look_at(out)
    console.show(as_json, found.model_dump(mode="json"), lambda: show_status(found))
