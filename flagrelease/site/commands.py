"""The command line of the morning page: site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flagrelease import console
from flagrelease.errors import UsageError

_EXAMPLES = """\
Example: flagrelease site releases/ --out morning/

Example: flagrelease site releases/ --pair fp8-hf:fp8-mp8 --nights 30
"""


def register(app: typer.Typer) -> None:
    """Add `site` to `app`."""
    app.command(epilog=_EXAMPLES)(site)


def site(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="An output folder of run or convert.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="SITE", help="Where the site is written. Default: DIR/site.")
    ] = None,
    pair: Annotated[
        list[str],
        typer.Option("--pair", metavar="A:B", help="Compare these two releases, or manifests, too. Can be repeated."),
    ] = [],  # noqa: B006 - typer reads it, nobody writes it
    nights: Annotated[
        int, typer.Option("--nights", min=1, metavar="N", help="How many of the last nights get a page of their own.")
    ] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of text.")] = False,
) -> None:
    """Make a static site over all releases: verdicts by chip, what each night changed, comparisons of releases.

    The site needs no network and no server: open SITE/index.html. It holds no time of its own, so the same folder gives
    the same bytes. Weights are not read.
    """
    from flagrelease.site.build import SiteRequest, build

    request = SiteRequest(folder, out or folder / "site", tuple(map(_pair, pair)), nights)
    with console.counted(f"reading the records in {folder}") as counter:
        made = build(request, lambda done, total: counter("pages written", done, total))
    document: dict[str, Any] = {
        "site": str(request.out),
        "pages": made.pages,
        "bytes": made.bytes,
        "releases": made.releases,
        "nights": made.nights,
        "comparisons": made.comparisons,
        "troubles": list(made.troubles),
    }

    def text() -> None:
        print(f"{request.out / 'index.html'}: {made.pages:,} pages, {console.human_bytes(made.bytes)}")
        for trouble in made.troubles:
            print(f"  left out: {console.printable(trouble)}")

    console.show(as_json, document, text)


def _pair(text: str) -> tuple[str, str]:
    before, colon, after = text.partition(":")
    if not (before and colon and after):
        raise UsageError(f"--pair {text}: two releases with a colon between them are expected, such as fp8-hf:fp8-mp8")
    return before, after
