"""The command line of the benchmarks, `flagrelease bench ...`. torch is imported when one of them runs."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from flagrelease.bench.options import comma_numbers, write_plot
from flagrelease.bench.serve import commands as serve
from flagrelease.console import say
from flagrelease.errors import UsageError

group = typer.Typer(help="Measure a machine: the engine, its operators, a server.", no_args_is_help=True)


class DimensionsChoice(str, Enum):
    """Of a model whose weights are random."""

    FLASH = "flash"
    PRO = "pro"
    TINY = "tiny"


class DraftsChoice(str, Enum):
    """Draft stages: those of the preview, and of the releases after it."""

    MTP = "mtp"
    DSPARK = "dspark"


DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, or one of the chip table: cuda, npu, musa.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of a table.")]
PlotOption = Annotated[Path | None, typer.Option("--plot", metavar="FILE.svg", help="Also draw the table.")]


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    app.add_typer(group, name="bench")


@group.command(epilog="Example: flagrelease bench engine --dimensions flash --experts 88 --json > h100.json")
def engine(
    name: Annotated[
        DimensionsChoice,
        typer.Option("--dimensions", help="The model whose dimensions are used; the weights are random."),
    ] = DimensionsChoice.FLASH,
    layers: Annotated[
        int | None, typer.Option("--layers", min=1, help="Only the first N layers. Default: all.")
    ] = None,
    experts: Annotated[
        int | None, typer.Option("--experts", min=1, help="Routed experts of a layer. Default: all.")
    ] = None,
    numerics: Annotated[str, typer.Option("--numerics", help="native, fp8 or bf16; docs/numerics.md.")] = "native",
    operators: Annotated[
        str, typer.Option("--operators", help="Which operators compute: torch, triton, auto, flag_gems, emulated.")
    ] = "auto",
    batch: Annotated[str, typer.Option("--batch", help="Rows that decode together, one row of the table each.")] = (
        "1,16,64"
    ),
    prompt: Annotated[str, typer.Option("--prompt", help="Tokens of prompts to prefill.")] = "512,4096,8192,32768",
    context: Annotated[
        str, typer.Option("--context", help="Tokens in the cache before decoding begins; every batch at every one.")
    ] = "4096",
    chunk: Annotated[int, typer.Option("--chunk", min=1, help="Tokens that prefill appends in one step.")] = 8192,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Decoding steps that one time is the mean of.")] = 20,
    drafts: Annotated[
        DraftsChoice | None,
        typer.Option("--drafts", help="Also what drafts of these stages and their verification cost. Default: none."),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """Decoding and prefill with random weights, made on the device, beside what its memory and matrix units allow.

    Under torchrun the model is cut over the ranks, and the first prints.
    """
    from flagrelease.bench.engine import EngineRequest, bench_engine
    from flagrelease.bench.engine_report import plot_engine, show_engine
    from flagrelease.device import open_device
    from flagrelease.ranks.job import local_rank

    request = EngineRequest(
        name.value, layers, experts, numerics, operators, comma_numbers("--batch", batch),
        comma_numbers("--prompt", prompt), comma_numbers("--context", context), chunk, steps,
        None if drafts is None else drafts.value,
    )  # fmt: skip
    report = bench_engine(request, open_device(device, local_rank()))
    if report is None:
        return
    if as_json:
        print(json.dumps(report.document(), indent=2))
    else:
        show_engine(report)
    if plot is not None:
        write_plot(plot, plot_engine(report))


@group.command(epilog="Example: flagrelease bench kernels --tokens 1,64")
def kernels(
    name: Annotated[
        DimensionsChoice, typer.Option("--dimensions", help="The model whose shapes are used; the numbers are random.")
    ] = DimensionsChoice.FLASH,
    tokens: Annotated[
        str, typer.Option("--tokens", help="Tokens in a call; each number gets a block of the table.")
    ] = ("1,64,1024"),
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Each operator beside its torch definition, and beside FlagGems' where that is installed."""
    from flagrelease.bench.kernel_report import show_kernels
    from flagrelease.bench.kernels import KernelRequest, bench_kernels
    from flagrelease.device import open_device

    report = bench_kernels(KernelRequest(name.value, comma_numbers("--tokens", tokens)), open_device(device))
    if as_json:
        print(json.dumps(report.document(), indent=2))
    else:
        show_kernels(report)


@group.command(name="compile", epilog="Example: flagrelease bench compile --target cuda:90 --target hip:gfx942")
def compile_kernels(
    targets: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="BACKEND:ARCH", help="As cuda:90, hip:gfx942; several. Default: eight."),
    ] = None,
    tritons: Annotated[
        list[Path] | None,
        typer.Option("--triton", metavar="DIR", help="Made by pip install --target; several. Default: the installed."),
    ] = None,
    name: Annotated[
        DimensionsChoice, typer.Option("--dimensions", help="The model whose steps are launched.")
    ] = DimensionsChoice.FLASH,
    numerics: Annotated[str, typer.Option("--numerics", help="Of the steps, with commas: native, fp8, bf16.")] = (
        "native,bf16"
    ),
    batch: Annotated[str, typer.Option("--batch", help="Rows that decode together, a step each.")] = "1,16",
    context: Annotated[int, typer.Option("--context", min=1, help="Tokens before those that are decoded.")] = 4096,
    prompt: Annotated[str, typer.Option("--prompt", help="Tokens of prompts that are read.")] = "512,8192",
    as_json: JsonOption = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="A table for a page on stdout.")] = False,
) -> None:
    """Every kernel that the engine launches, compiled for chips that are not here: which of them take it, and what it
    needs there.

    Triton compiles without a device, so this needs none. Nothing is run or timed.
    """
    from flagrelease.bench.compile.display import markdown, show_compiled
    from flagrelease.bench.compile.matrix import CompileRequest, compile_matrix
    from flagrelease.bench.compile.target import TARGETS

    if as_json and as_markdown:
        raise UsageError("--json and --markdown: stdout takes one document")
    request = CompileRequest(
        tuple(targets or TARGETS), tuple(tritons or ()), name.value, tuple(numerics.split(",")),
        comma_numbers("--batch", batch), context, comma_numbers("--prompt", prompt),
    )  # fmt: skip
    report = compile_matrix(request, say)
    if as_json:
        print(json.dumps(report.document(), indent=2))
    elif as_markdown:
        print(markdown(report), end="")
    else:
        show_compiled(report)


serve.register(group)
