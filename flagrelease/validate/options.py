"""Options that validate and baseline record share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flagrelease.records.named import complete_recipe, find_recipe
from flagrelease.validate.endpoint.address import Dialect

RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="RECIPE",
        help="The recipe (YAML, or the name of a shipped one) whose `validation` section says what a pass needs.",
        parser=find_recipe,
        autocompletion=complete_recipe,
    ),
]
DataOption = Annotated[
    list[str],
    typer.Option("--data", metavar="NAME=FILE", help="Questions of a benchmark, in place of the hub's. Several times."),
]
SandboxOption = Annotated[
    str | None,
    typer.Option(
        "--sandbox", metavar="CMD", help="Runs a Python program from its standard input: benchmarks of code need one."
    ),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="An OpenAI-compatible server that is asked in place of the bundled engine, with /v1.",
    ),
]
ModelOption = Annotated[str | None, typer.Option("--model", metavar="NAME", help="The model's name at the endpoint.")]
DialectOption = Annotated[
    Dialect,
    typer.Option("--dialect", help="deepseek: `thinking`; template: chat_template_kwargs (vLLM, SGLang)."),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key-env",
        metavar="NAME",
        help="The environment variable that holds the endpoint's key. Without it no key is sent.",
    ),
]
ConcurrencyOption = Annotated[
    int | None, typer.Option("--concurrency", min=1, help="Requests at once at the endpoint. Default: 32.")
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout", min=1, metavar="SECONDS", help="How long to wait for one answer of the endpoint. Default: 3600."
    ),
]
VariantOption = Annotated[
    list[str],
    typer.Option(
        "--variant",
        metavar="NAME=URL",
        help="Another server of the release, started otherwise (graphs off, speculation on, another chunk size), whose "
        "answers must be those of --endpoint. Several times.",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, or one of the chip table: cuda, npu, musa.")]
OperatorsOption = Annotated[
    str, typer.Option("--operators", help="Which operators compute: torch, triton, auto, flag_gems, emulated.")
]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="How many answers are generated at once.")]
