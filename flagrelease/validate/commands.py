"""The command line of validation: validate, baseline record."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flagrelease.console import Display, say, show
from flagrelease.errors import UsageError, VerificationError
from flagrelease.ranks.command import AUTO, RanksOption, choose_ranks, start_ranks
from flagrelease.records.rules import StageName
from flagrelease.validate.endpoint.address import Dialect
from flagrelease.validate.options import (
    BatchOption,
    ConcurrencyOption,
    DataOption,
    DeviceOption,
    DialectOption,
    EndpointOption,
    KeyOption,
    ModelOption,
    OperatorsOption,
    RecipeOption,
    SandboxOption,
    TimeoutOption,
    VariantOption,
)
from flagrelease.validate.stages.choices import PARTS, Part

if TYPE_CHECKING:
    from flagrelease.validate.endpoint.address import Endpoint
    from flagrelease.validate.stages.request import Data

CANNOT_TELL = 7  # exit code of a validation that neither passes nor fails


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(
        epilog="Example: flagrelease validate releases/fp8-mp8 --chip mthreads "
        "--recipe recipes/deepseek-v4-flash.yaml --source DeepSeek-V4-Flash/ --baseline flash-baseline "
        "--data gpqa=gpqa_diamond.csv. Exit codes, of what was asked for: 0 pass; 5 fail; 7 cannot tell."
    )(validate)
    baseline = typer.Typer(no_args_is_help=True, help="What a native model gives, for validations on other machines.")
    baseline.command(
        epilog="Example: flagrelease baseline record DeepSeek-V4-Flash/ --out flash-baseline "
        "--recipe recipes/deepseek-v4-flash.yaml --data gpqa=gpqa_diamond.csv"
    )(record)
    app.add_typer(baseline, name="baseline")


def validate(
    invocation: typer.Context,
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="A release folder.", show_default=False)],
    chip: Annotated[str, typer.Option("--chip", metavar="NAME", help="A chip of the table.", show_default=False)],
    recipe: RecipeOption = None,
    source: Annotated[
        Path | None,
        typer.Option("--source", metavar="DIR", help="The checkpoint, to prove every tensor against it."),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="DIR", help="What `baseline record` made of the checkpoint.")
    ] = None,
    data: DataOption = [],  # noqa: B006 - typer reads it, nobody writes it
    sandbox: SandboxOption = None,
    endpoint: EndpointOption = None,
    model: ModelOption = None,
    dialect: DialectOption = "deepseek",
    key_env: KeyOption = None,
    concurrency: ConcurrencyOption = None,
    timeout: TimeoutOption = None,
    variant: VariantOption = [],  # noqa: B006
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for report and progress. Default: validation/RELEASE-CHIP beside RELEASE.",
        ),
    ] = None,
    until: Annotated[
        StageName | None,
        typer.Option(
            "--until", help="The last stage to run; the exit code is about those up to it.", show_default=False
        ),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Compare every layer, to find where a fault sits.")] = False,
    device: DeviceOption = "auto",
    operators: OperatorsOption = "auto",
    batch: BatchOption = 16,
    ranks: RanksOption = AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report instead of text.")] = False,
) -> None:
    """Judge a release on its chip: files, weights, logits, benchmarks, behaviour. Run the same command again to resume.

    Without a baseline, or without a device that can run the release, the stages that read files are run and the others
    are reported as not run.
    """
    from flagrelease.chips.table import get_chip
    from flagrelease.ranks.job import is_leader
    from flagrelease.records.release import read_release
    from flagrelease.validate.stages.preconditions import prepare
    from flagrelease.validate.stages.request import ValidationRequest, choose_rules, default_out
    from flagrelease.validate.stages.run import report_bytes
    from flagrelease.validate.stages.run import validate as run_validation
    from flagrelease.validate.stages.summary import show_report

    server = _endpoint(endpoint, model, dialect, key_env, concurrency, timeout)
    known, on_disk = get_chip(chip), read_release(release)
    request = ValidationRequest(
        release=on_disk,
        chip=known,
        rules=choose_rules(recipe, on_disk, known),
        out=out or default_out(release, known),
        recipe=recipe,
        source=source,
        baseline=baseline,
        data=parse_data(data),
        endpoint=server,
        sandbox=sandbox,
        variants=parse_variants(variant, server),
        until=until,
        layers=layers,
        device=device,
        operators=operators,
        rows=batch,
    )
    ready = prepare(request)
    if not isinstance(ready.device, str) and (count := choose_ranks(ranks, on_disk.ranks, ready.device.type)) > 1:
        with Display() as display:  # files are read before the other ranks start: they would wait for hours
            files = run_validation(ready.only_files(), display)
        if files is not None and files.verdict != "fail":
            start_ranks(invocation, count)
    with Display(quiet=not is_leader()) as display:
        report = run_validation(ready, display)
    if report is None:
        return
    if as_json:
        print(report_bytes(report).decode(), end="")
    else:
        show_report(report, release, request.out)
    if report.asked_verdict != "pass":
        raise typer.Exit(VerificationError.exit_code if report.verdict == "fail" else CANNOT_TELL)


def record(
    invocation: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The native checkpoint.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder for the baseline.", show_default=False)],
    recipe: RecipeOption = None,
    data: DataOption = [],  # noqa: B006
    documents: Annotated[
        Path | None,
        typer.Option("--documents", metavar="FILE", help="Texts for the logits (JSONL: name, kind, text or tokens)."),
    ] = None,
    part: Annotated[
        Part | None,
        typer.Option("--part", help="Record only this part; the others can follow later or on another machine."),
    ] = None,
    sandbox: SandboxOption = None,
    endpoint: EndpointOption = None,
    model: ModelOption = None,
    dialect: DialectOption = "deepseek",
    key_env: KeyOption = None,
    concurrency: ConcurrencyOption = None,
    timeout: TimeoutOption = None,
    device: DeviceOption = "auto",
    operators: OperatorsOption = "auto",
    batch: BatchOption = 16,
    ranks: RanksOption = AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Record what the native model gives: logits with their noise floor, answers to the benchmarks, behaviour.

    The chip's machine then needs this folder and no native model. Run the same command again to resume.
    """
    from flagrelease.ranks.job import is_leader
    from flagrelease.records.recipe import read_recipe
    from flagrelease.validate.stages.record import Recording
    from flagrelease.validate.stages.record import record as run_recording
    from flagrelease.validate.stages.request import default_rules

    recording = Recording(
        source=source,
        out=out,
        rules=default_rules() if recipe is None else read_recipe(recipe).validation,
        data=parse_data(data),
        documents=documents,
        endpoint=_endpoint(endpoint, model, dialect, key_env, concurrency, timeout),
        sandbox=sandbox,
        parts=PARTS if part is None else (part,),
        device=device,
        operators=operators,
        rows=batch,
    )
    start_ranks(invocation, choose_ranks(ranks, 1, device))
    with Display(quiet=not is_leader()) as display:
        folder = run_recording(recording, display)
    if is_leader():
        held = folder.parts()
        show(as_json, {"out": str(out), "parts": held}, lambda: say(f"{out}: holds {', '.join(held)}"))


def parse_data(words: list[str]) -> Data:
    """What `--data` was given as: files by the name of their benchmark.

    Raises:
        UsageError: not NAME=FILE, or no such file.
    """
    found: Data = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not name or not equals or not path:
            raise UsageError(f"--data {word}: NAME=FILE is expected")
        if not Path(path).is_file():
            raise UsageError(f"--data {word}: there is no file {path}")
        found[name] = (*found.get(name, ()), Path(path))
    return found


def parse_variants(words: list[str], endpoint: Endpoint | None) -> dict[str, Endpoint]:
    """What `--variant` was given as: servers by name, asked with the model, dialect and key of `--endpoint`.

    Raises:
        UsageError: not NAME=URL, a name or an address twice, an address that cannot be asked, or no `--endpoint`.
    """
    found: dict[str, Endpoint] = {}
    for word in words:
        name, equals, url = word.partition("=")
        if not name or not equals or not url or "/" in name:
            raise UsageError("--variant: NAME=URL is expected, such as eager=http://localhost:8001/v1")
        if endpoint is None:
            raise UsageError("--variant belongs to --endpoint, with whose answers those of the variant are compared")
        if name in found:
            raise UsageError(f"--variant {name}: is given twice")
        variant = replace(endpoint, url=url)
        others = {"--endpoint": endpoint} | {f"--variant {known}": each for known, each in found.items()}
        if same := [other for other, each in others.items() if each.base == variant.base]:
            raise UsageError(f"--variant {name}: has the address of {same[0]}; start another server and name that one")
        found[name] = variant
    return found


def _endpoint(
    url: str | None,
    model: str | None,
    dialect: Dialect,
    key_variable: str | None,
    concurrency: int | None,
    timeout: float | None,
) -> Endpoint | None:
    from flagrelease.validate.endpoint.address import Endpoint

    given = {"--model": model, "--key-env": key_variable, "--concurrency": concurrency, "--timeout": timeout}
    if url is None:
        if stray := [option for option, value in given.items() if value is not None]:
            raise UsageError(f"{stray[0]} belongs to --endpoint")
        return None
    made = Endpoint(url, model or "", dialect, key_variable=key_variable)
    if model is None:
        raise UsageError("--endpoint needs --model: the name that the server knows the model by")
    if timeout is not None and not math.isfinite(timeout):
        raise UsageError(f"--timeout {timeout:g}: a finite number of seconds is expected")
    made.key()  # a variable that is not set is refused before hours are spent
    return replace(made, concurrency=concurrency or made.concurrency, timeout=timeout or made.timeout)
