"""The command line of the whole way: run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flagrelease.records.named import complete_recipe, find_recipe
from flagrelease.run.request import STAGES, StageName

if TYPE_CHECKING:
    from flagrelease.run.steps import ChipRun

_EXAMPLES = """\
Example: flagrelease run recipes/deepseek-v4-flash.yaml --checkpoint DeepSeek-V4-Flash/ --out releases --chip mthreads

Example: flagrelease run recipes/deepseek-v4-flash.yaml --out releases --publish hf --yes

After an interruption, or when something was missing, run the same command again: it resumes. The exit code is that of
the first chip that could not be finished; 7: its validation has no verdict.
"""


def register(app: typer.Typer) -> None:
    """Add `run` to `app`."""
    app.command(epilog=_EXAMPLES)(run)


def run(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe (YAML), or the name of a shipped one: flash.",
            parser=find_recipe,
            autocompletion=complete_recipe,
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for releases, validations and the baseline.")
    ],
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="DIR", help="The source, if the recipe names no folder.")
    ] = None,
    chip: Annotated[
        list[str],
        typer.Option(
            "--chip",
            metavar="CHIP[:FORMAT-LAYOUT]",
            help="A chip of the recipe, or one release of it, as mthreads:fp8-hf. Several times. Default: all.",
        ),
    ] = [],  # noqa: B006 - typer reads it, nobody writes it
    until: Annotated[
        StageName | None, typer.Option("--until", help="The last stage. Default: publish if asked, else validate.")
    ] = None,
    publish: Annotated[
        str | None,
        typer.Option(
            "--publish", metavar="hf|modelscope|DIR", help="Where to publish. DIR gets a folder for each repository."
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Private repositories. Default: public.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Publish. Without this the plan is only shown.")] = False,
    signing_key: Annotated[
        Path | None, typer.Option("--signing-key", metavar="FILE", help="An EC private key (PEM) to sign with.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            metavar="DIR",
            help="A baseline recorded elsewhere. Default: OUT/baseline, recorded by this run.",
        ),
    ] = None,
    data: Annotated[
        list[str], typer.Option("--data", metavar="NAME=FILE", help="Questions of a benchmark. Several times.")
    ] = [],  # noqa: B006
    source_digests: Annotated[
        Path | None,
        typer.Option("--source-digests", metavar="FILE", help="SHA-256 of the checkpoint's files (sha256sum format)."),
    ] = None,
    documents: Annotated[
        Path | None, typer.Option("--documents", metavar="FILE", help="Texts for the baseline's logits (JSONL).")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where validation runs: auto, cpu, cuda, ...")] = "auto",
    operators: Annotated[
        str, typer.Option("--operators", help="Which operators compute: torch, triton, auto.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Threads that decode and hash. Default: the processors.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of a table.")] = False,
) -> None:
    """Run every step for every chip of a recipe: convert, verify, validate, publish. What chips share is done once."""
    from flagrelease.convert.planning.memory import default_workers
    from flagrelease.records.recipe import read_recipe
    from flagrelease.run.request import RunRequest
    from flagrelease.run.run import run_recipe
    from flagrelease.validate.commands import parse_data

    request = RunRequest(
        path=recipe,
        recipe=read_recipe(recipe),
        out=out,
        checkpoint=checkpoint,
        chips=tuple(chip),
        until=until or ("validate" if publish is None else "publish"),
        target=publish,
        private=private,
        yes=yes,
        signing_key=signing_key,
        baseline=baseline,
        data=parse_data(data),
        documents=documents,
        source_digests=source_digests,
        device=device,
        operators=operators,
        workers=workers or default_workers(),
    )
    runs = run_recipe(request)
    if as_json:
        print(json.dumps({"out": str(out), "chips": [one.document() for one in runs]}, indent=2, ensure_ascii=False))
    else:
        _show(runs)
    codes = [step.exit_code for one in runs for step in one.steps.values() if step.exit_code]
    if codes:
        raise typer.Exit(codes[0])


def _show(runs: list[ChipRun]) -> None:
    from rich.markup import escape

    from flagrelease import console

    colours = {"done": "green", "planned": "cyan", "failed": "red", "cannot-tell": "yellow"}
    rows = console.table("chip", "release", *STAGES)
    for run in runs:
        cells = [run.steps.get(stage) for stage in STAGES]
        rows.add_row(
            run.chip.id,
            run.release.folder.name,
            *("-" if step is None else f"[{colours[step.status]}]{step.status}[/]" for step in cells),
        )
    console.out().print(rows)
    for run in runs:
        last = list(run.steps.items())[-1]
        console.out().print(f"{run.chip.id} {run.release.folder.name}: {last[0]}: {escape(last[1].detail)}")
