"""The command line of the chip table: chips."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flagrelease import console
from flagrelease.chips.table import get_chip, load_chips

_EXAMPLES = """\
Example: flagrelease chips mthreads

Example: flagrelease chips --json
"""


def complete_chip(incomplete: str) -> list[str]:
    """For a shell's completion: the chips of the table."""
    return [name for name in load_chips() if name.startswith(incomplete)]


def register(app: typer.Typer) -> None:
    """Add `chips` to `app`."""
    app.command(epilog=_EXAMPLES)(chips)


def chips(
    chip: Annotated[
        str | None,
        typer.Argument(metavar="[CHIP]", help="One chip, with its commands.", autocompletion=complete_chip),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table of README.md instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of text.")] = False,
) -> None:
    """Show the chips: which release each gets, on how many cards, what serves it, and how far it is.

    Sizes are those of the newest models, as planned from headers of full size; `plan` says them for your checkpoint.
    """
    from flagrelease.chips.listing.display import document, show_all, show_chip

    known = None if chip is None else get_chip(chip)
    if markdown:
        from flagrelease.chips.listing.markdown import readme_table

        print(readme_table())
        return
    rows: dict[str, Any] = document(known)
    console.show(as_json, rows, show_all if known is None else lambda: show_chip(known))
