"""The command line of publishing: `publish`, and `verify` of what is published. Hub clients are loaded when needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flagrelease.errors import UsageError, VerificationError
from flagrelease.records.named import complete_recipe, find_recipe

if TYPE_CHECKING:
    from flagrelease.publish.publication import Publication

_PUBLISH_EXAMPLES = """\
Example, which shows the plan (--yes carries it out): flagrelease publish releases/fp8-mp8 --chip mthreads --to hf

Example: flagrelease publish releases/fp8-mp8 --chip mthreads --to mirror/ --signing-key key.pem --yes
"""


RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="RECIPE",
        help="For a release converted without a recipe: the one that gives the same bytes.",
        parser=find_recipe,
        autocompletion=complete_recipe,
    ),
]
_SCRIPTS_EXAMPLE = "Example: flagrelease scripts releases/fp8-hf --chip mthreads --stack vllm-musa --out run/"


def register(app: typer.Typer) -> None:
    """Add `publish` and `scripts` to `app`."""
    app.command(epilog=_PUBLISH_EXAMPLES)(publish)
    app.command(epilog=_SCRIPTS_EXAMPLE)(scripts)


def publish(
    release: Annotated[
        str,
        typer.Argument(
            metavar="RELEASE",
            help="A release folder, or hf://OWNER/NAME@BRANCH where convert --disk has put one.",
            show_default=False,
        ),
    ],
    chip: Annotated[str, typer.Option("--chip", metavar="NAME", help="The chip it is published for.")],
    to: Annotated[str, typer.Option("--to", metavar="hf|modelscope|DIR", help="A hub, or a folder.")],
    repo: Annotated[
        str | None,
        typer.Option("--repo", metavar="OWNER/NAME", help="Default: the name that docs/publishing.md gives it."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A private repository. Default: public.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only the plan, whatever else is given.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Carry out the plan. Without this it is only shown.")] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="The validation's report. Default: where validate put it."),
    ] = None,
    allow_unvalidated: Annotated[
        bool, typer.Option("--allow-unvalidated", help="Publish without a report; the card will say so.")
    ] = False,
    allow_unproved_weights: Annotated[
        bool,
        typer.Option(
            "--allow-unproved",
            help="Publish though the validation did not compare the weights with the source; the card will say so.",
        ),
    ] = False,
    recipe: RecipeOption = None,
    signing_key: Annotated[
        Path | None, typer.Option("--signing-key", metavar="FILE", help="An EC private key (PEM) to sign with.")
    ] = None,
    signature: Annotated[
        Path | None,
        typer.Option(
            "--signature", metavar="FILE", help="A signature bundle that model_signing made over these files elsewhere."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of text.")] = False,
) -> None:
    """Put a validated release on a hub or into a folder, and check there by digest that it is what was validated."""
    from flagrelease.publish.publish import OverLimitError
    from flagrelease.publish.staging.published import publish_from

    try:
        outcome = publish_from(
            release,
            chip,
            to,
            repo=repo,
            private=private,
            dry_run=dry_run,
            yes=yes,
            report=report,
            allow_unvalidated=allow_unvalidated,
            allow_unproved_weights=allow_unproved_weights,
            recipe=recipe,
            signing_key=signing_key,
            signature=signature,
        )
    except OverLimitError as refusal:
        _show_plan(refusal.publication, None, as_json)
        print(f"flagrelease: {refusal.kind}: {refusal}", file=sys.stderr)
        raise typer.Exit(refusal.exit_code) from refusal
    _show_plan(outcome.publication, outcome.revision, as_json)
    if as_json:
        return
    if outcome.revision is None:
        print("nothing was published; add --yes to publish", file=sys.stderr)
    else:
        print(f"published and checked: {outcome.publication.repo} at {outcome.revision}")


def scripts(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="A release folder.", show_default=False)],
    chip: Annotated[str, typer.Option("--chip", metavar="NAME", help="The chip to run it on.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the files, outside the release.")],
    stack: Annotated[
        str | None,
        typer.Option(
            "--stack", metavar="NAME", help="Write a script for this serving stack too. Default: the recipe's."
        ),
    ] = None,
    recipe: RecipeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of text.")] = False,
) -> None:
    """Write the files that run a release on its chip, without publishing it: scripts, Containerfile, compose file."""
    from flagrelease.chips.table import get_chip
    from flagrelease.publish.scripts import write_scripts
    from flagrelease.records.recipe import read_recipe

    attached = None if recipe is None else read_recipe(recipe)
    written = [str(path) for path in write_scripts(release, get_chip(chip), stack, out, attached)]
    if as_json:
        _print_json({"release": str(release), "chip": get_chip(chip).id, "files": written})
    else:
        print("\n".join(written))


def _show_plan(publication: Publication, revision: str | None, as_json: bool) -> None:
    from flagrelease.publish.summary import plan_document, plan_text

    if as_json:
        _print_json({**plan_document(publication), "revision": revision})
    else:
        print(plan_text(publication))


def verify_published(release: str, key: Path | None, sample_bytes: int, private: bool, as_json: bool) -> None:
    """`verify hf://OWNER/NAME@TAG`: print what was found.

    Raises:
        UsageError: `release` is no address on a hub.
        VerificationError: the release there is not what it says.
    """
    from flagrelease.publish.online import verify_online
    from flagrelease.publish.reading.remote import parse_address
    from flagrelease.publish.summary import online_text
    from flagrelease.publish.upload.client import open_hub

    address = parse_address(release)
    assert address is not None, "without :// it is a folder"
    found = verify_online(
        open_hub(address.hub),
        address,
        private=private,
        key=None if key is None else _public_key(key),
        sample_bytes=sample_bytes,
    )
    if as_json:
        _print_json(found.model_dump(mode="json"))
    else:
        print(online_text(found))
    if not found.passed:
        raise typer.Exit(VerificationError.exit_code)


def signature_problems(folder: Path, key: Path) -> list[str]:
    """What keeps a published folder from being what the key signed, as sentences."""
    from flagrelease.publish import folder as published

    return published.signature_problems(folder, _public_key(key))


def _public_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))
