"""The options of `plan` and `convert` that are about several machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flagrelease.errors import UsageError

PartsOption = Annotated[
    int | None,
    typer.Option(
        "--parts", min=1, metavar="N", help="Also show what each of N machines would write and read (--part)."
    ),
]
PartOption = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="I/N",
        help="Make part I of N, whole files in DIR/parts/; other machines make the other parts (docs/cluster.md).",
    ),
]
MergeOption = Annotated[
    bool,
    typer.Option("--merge", help="Make the releases of the parts in DIR/parts/. Reads every file once, copies none."),
]


def chosen_part(part: str | None, merge: bool, disk: str | None, source_digests: Path | None) -> tuple[int, int] | None:
    """The part of `--part`, as (I, N).

    Raises:
        UsageError: it is none, or is given with an option that belongs to other conversions.
    """
    from flagrelease.convert.sharing.shares import parse_part

    if disk is not None and (part is not None or merge):
        raise UsageError("--disk hands files over as they are finished; --part and --merge need them to stay: give one")
    if merge and (part is not None or source_digests is not None):
        raise UsageError("--merge makes the releases of finished parts; --part and --source-digests are for making one")
    return None if part is None else parse_part(part)
