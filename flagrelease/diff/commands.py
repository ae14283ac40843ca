"""The command line of comparing: diff."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flagrelease import console

_EXAMPLES = """\
Example: flagrelease diff releases/fp8-hf releases/fp8-mp8

Example, of a manifest that was kept: flagrelease diff old/manifest.json releases/fp8-hf --json
"""
_HELP = "A release folder, or a manifest.json alone."


def register(app: typer.Typer) -> None:
    """Add `diff` to `app`."""
    app.command(epilog=_EXAMPLES)(diff)


def diff(
    before: Annotated[Path, typer.Argument(metavar="RELEASE_A", help=_HELP, show_default=False)],
    after: Annotated[Path, typer.Argument(metavar="RELEASE_B", help=_HELP, show_default=False)],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document instead of text, nothing left out.")
    ] = False,
) -> None:
    """Show what changed between two releases: tensors by digest, configs by key, files, drafts, losses, sizes.

    Only manifests and small JSON files are read, no weights. The exit code is 0 whether they differ or not.
    """
    from flagrelease.diff.compare import compare
    from flagrelease.diff.display import show_difference
    from flagrelease.diff.operand import read_operand

    found = compare(read_operand(before), read_operand(after))
    console.show(as_json, found.model_dump(mode="json"), lambda: show_difference(found))
