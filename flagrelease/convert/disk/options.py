"""The options of `--disk` and of where finished files go."""

from __future__ import annotations

from typing import Annotated

import typer

from flagrelease.errors import UsageError

DiskOption = Annotated[
    str | None,
    typer.Option(
        "--disk",
        metavar="SIZE",
        help="Bytes that --out may hold at any moment, as 500GB: files are made in passes, and those of a pass are "
        "handed over and deleted before the next one begins.",
    ),
]
ToOption = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="hf|modelscope",
        help="With --disk: the hub that finished files go to, on a branch or into a private repository, until publish.",
    ),
]
RepoOption = Annotated[
    str | None,
    typer.Option("--repo", metavar="OWNER/NAME", help="With --to: its repository. Default: that of the recipe."),
]
PrivateOption = Annotated[
    bool, typer.Option("--private", help="With --to hf: a repository that is not there yet is made a private one.")
]
HandOverOption = Annotated[
    str | None,
    typer.Option(
        "--hand-over",
        metavar="CMD",
        help="With --disk: the command, run without a shell, that copies a finished {file} of {release} to its {name} "
        "elsewhere.",
    ),
]
HandOverCheckOption = Annotated[
    str | None,
    typer.Option(
        "--hand-over-check",
        metavar="CMD",
        help="With --hand-over: the command that prints the SHA-256 of {name} there, as sha256sum does, or fails.",
    ),
]


def parse_budget(text: str) -> int:
    """Bytes, of `500GB`, `2 TiB` or a number.

    Raises:
        UsageError: it is not written so.
    """
    from flagrelease.records.convert_spec import parse_bytes

    size = parse_bytes(text)
    if not isinstance(size, int) or size <= 0:
        raise UsageError(f"--disk {text}: write a size as 500GB or 2TiB")
    return size
