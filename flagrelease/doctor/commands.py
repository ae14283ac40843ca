"""The command line of the examination: doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flagrelease import console
from flagrelease.chips.listing.commands import complete_chip
from flagrelease.errors import ResourceError

_EXAMPLES = """\
Example: flagrelease doctor

Example: flagrelease doctor --chip mthreads --json

Exit codes: 0 whatever is missing; with --chip 4 if none of the chip's releases can be run here.
"""


def register(app: typer.Typer) -> None:
    """Add `doctor` to `app`."""
    app.command(epilog=_EXAMPLES)(doctor)


def doctor(
    chip: Annotated[
        str | None,
        typer.Option(
            "--chip", metavar="NAME", help="Ask whether this chip's releases can be run.", autocompletion=complete_chip
        ),
    ] = None,
    disk: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where releases would be written: its free space is told.")
    ] = Path(),
    online: Annotated[
        bool, typer.Option("--online", help="Ask the hubs whether they take the tokens. Otherwise no network is used.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of text.")] = False,
) -> None:
    """Look at this machine: its chips, drivers and packages, what is known to go wrong with them, and what it can do.

    What may crash or hang is imported in a process of its own, with a limit of time. Nothing is written.
    """
    from flagrelease.chips.table import get_chip
    from flagrelease.doctor.display import show_diagnosis
    from flagrelease.doctor.examine import examine
    from flagrelease.doctor.place import Place

    asked = None if chip is None else get_chip(chip)
    with console.status("looking at chips, packages and the machine"):
        found = examine(Place(), asked, disk, online)
    console.show(as_json, found.model_dump(mode="json"), lambda: show_diagnosis(found))
    if found.possible is False:
        raise typer.Exit(ResourceError.exit_code)
