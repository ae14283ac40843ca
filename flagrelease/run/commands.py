"""The command line of the whole way: run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flagrelease.records.named import complete_recipe, find_recipe
from flagrelease.run.request import STAGES, StageName
from flagrelease.source.hub.opening import folder_of

if TYPE_CHECKING:
    from flagrelease.run.nightly import Job

_EXAMPLES = """\
Example, one chip: flagrelease run recipes/deepseek-v4-flash.yaml --checkpoint DeepSeek-V4-Flash/ --out releases
--chip mthreads

Example, the CPU machine of a night job: flagrelease run flash.yaml --out /data/flash --until verify --replace
--disk-limit 3TB --junit verify.xml

Example, the chip's machine, with the same folder: flagrelease run flash.yaml --out /data/flash --from validate
--chip ascend --time-limit 8h --publish hf --yes --notify "mail -s {verdict} team@example.org"

Example, try it: flagrelease run recipes/tiny.yaml --out out --until verify

A second run does nothing where nothing changed, and says so. After an interruption, or when something was missing, run
the same command again: it resumes. The exit code is that of the first release that could not be finished: 5 failed, 7
no verdict, 8 the time limit came first, 4 and 6 something was missing. docs/run.md has the rest.
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
        Path | None,
        typer.Option(
            "--checkpoint", metavar="DIR", parser=folder_of, help="The source, if the recipe names no folder."
        ),
    ] = None,
    chip: Annotated[
        list[str],
        typer.Option(
            "--chip",
            metavar="CHIP[:FORMAT-LAYOUT]",
            help="A chip of the recipe, or one release of it, as mthreads:fp8-hf. Several times. Default: all.",
        ),
    ] = [],  # noqa: B006 - typer reads it, nobody writes it
    begin: Annotated[
        StageName,
        typer.Option(
            "--from", help="The first stage. validate: on the chip's machine, with an --out that was proved elsewhere."
        ),
    ] = "convert",
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
        str, typer.Option("--operators", help="Which operators compute: torch, triton, auto, emulated.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Threads that decode and hash. Default: the processors.")
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Remove a release, or a published folder, that the recipe or the checkpoint outdated."
        ),
    ] = False,
    time_limit: Annotated[
        str | None, typer.Option("--time-limit", metavar="6h", help="Stop then, with exit code 8; resumable.")
    ] = None,
    disk_limit: Annotated[
        str | None,
        typer.Option("--disk-limit", metavar="3TB", help="What --out may take. Releases beyond it are not begun."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write the stages of all releases as JUnit XML.")
    ] = None,
    notify: Annotated[
        str | None,
        typer.Option(
            "--notify",
            metavar="CMD",
            help="A command that gets the run's record (JSON) on stdin, and for {verdict} the result in words.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of a table.")] = False,
) -> None:
    """Run every step for every chip of a recipe: convert, verify, validate, publish. What chips share is done once."""
    from flagrelease.convert.planning.memory import default_workers
    from flagrelease.records.recipe import read_recipe
    from flagrelease.run.limits import parse_size, parse_time
    from flagrelease.run.nightly import Telling, run_job
    from flagrelease.run.notification import split_command
    from flagrelease.run.request import RunRequest
    from flagrelease.validate.commands import parse_data

    telling = Telling(
        junit=junit,
        notify=() if notify is None else tuple(split_command(notify)),
        time_limit=None if time_limit is None else parse_time(time_limit),
    )
    request = RunRequest(
        path=recipe,
        recipe=read_recipe(recipe),
        out=out,
        checkpoint=checkpoint,
        chips=tuple(chip),
        begin=begin,
        until=until or ("validate" if publish is None else "publish"),
        replace=replace,
        disk_limit=None if disk_limit is None else parse_size(disk_limit),
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
    job = run_job(request, telling)
    if as_json:
        document = {
            "out": str(out),
            "verdict": job.night.verdict,
            "summary": job.night.summary,
            "night": str(job.path),
            "chips": [one.document() for one in job.runs],
        }
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        _show(job)
    if job.night.exit_code:
        raise typer.Exit(job.night.exit_code)


def _show(job: Job) -> None:
    from rich.markup import escape

    from flagrelease import console

    colours = {"done": "green", "planned": "cyan", "failed": "red", "cannot-tell": "yellow", "stopped": "yellow"}
    rows = console.table("chip", "release", *STAGES)
    for run in job.runs:
        cells = [run.steps.get(stage) for stage in STAGES]
        rows.add_row(
            run.chip.id,
            run.folder.name,
            *("-" if step is None else f"[{colours[step.status]}]{step.status}[/]" for step in cells),
        )
    console.out().print(rows)
    for run in job.runs:
        last = list(run.steps.items())[-1]
        console.out().print(f"{run.chip.id} {run.folder.name}: {last[0]}: {escape(last[1].detail)}")
        for stage, step in run.steps.items():
            if step.why:
                console.out().print(f"  {stage} was done: {escape(step.why)}")
    console.out().print(escape(job.night.summary))
