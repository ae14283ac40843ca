"""`flagrelease bench serve URL`: the command line."""

from __future__ import annotations

import asyncio
import datetime
import json
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flagrelease.bench.options import comma_numbers, write_plot
from flagrelease.errors import NetworkError, UsageError
from flagrelease.extras import require_extra
from flagrelease.server_address import check_address, read_key

if TYPE_CHECKING:
    from flagrelease.bench.serve.figures import ServeFigures
    from flagrelease.bench.serve.scenario import ScenarioRow


class ScenarioChoice(str, Enum):
    """What is asked."""

    CHAT = "chat"
    LONG = "long"
    CONTEXT = "context"


def register(group: typer.Typer) -> None:
    """Add the command to `bench`."""
    group.command(
        epilog="Example: flagrelease bench serve http://127.0.0.1:8000 --concurrency 1,8,32 --plot serve.svg"
    )(serve)


def serve(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server, with or without /v1.", show_default=False)],
    model: Annotated[
        str | None, typer.Option("--model", help="The model's name. Default: the only one that the server lists.")
    ] = None,
    scenario: Annotated[
        list[ScenarioChoice], typer.Option("--scenario", help="chat, long, context. Several times too. Default: all.")
    ] = [],  # noqa: B006 - typer reads it, nobody writes it
    concurrency: Annotated[str, typer.Option("--concurrency", help="Requests at once, of chat and long.")] = "1,4,16",
    contexts: Annotated[str, typer.Option("--contexts", help="Prompt lengths of context.")] = "512,2048,8192",
    chat_tokens: Annotated[int, typer.Option("--chat-tokens", min=1, help="Prompt length of chat.")] = 128,
    long_tokens: Annotated[int, typer.Option("--long-tokens", min=1, help="Prompt length of long.")] = 8192,
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", min=2, help="The most tokens that an answer may have.")
    ] = 256,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="How many requests each caller sends, one after another.")
    ] = 4,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="A request fails after so many seconds without data.")
    ] = 600,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random prompts: another seed, other texts.")] = 0,
    key_env: Annotated[
        str | None, typer.Option("--key-env", metavar="NAME", help="The environment variable that holds the API key.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="SVG", help="Draw the result into this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of a table.")] = False,
) -> None:
    """Latency and throughput of any server that speaks OpenAI's API, seen from outside."""
    from flagrelease.bench.serve import report
    from flagrelease.bench.serve.scenario import plan_rows

    rows = plan_rows(
        [choice.value for choice in scenario or ScenarioChoice],
        comma_numbers("--concurrency", concurrency),
        comma_numbers("--contexts", contexts),
        answer_tokens,
        chat_tokens,
        long_tokens,
    )
    check_address(url, key_env)
    key = read_key(key_env)
    if not rows:
        raise UsageError("no rows: --concurrency and --contexts are empty for what --scenario asks")
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    name, results = asyncio.run(_measure(url, model, key, timeout, rows, rounds, seed))
    if as_json:
        print(json.dumps(report.document(results, url, name, rounds, date), indent=2, ensure_ascii=False))
    else:
        report.show(results)
    for remark in report.remarks(results):
        print(remark, file=sys.stderr)
    if plot is not None:
        write_plot(plot, report.plot(results))
    if not any(result.answered for result in results):
        raise NetworkError(f"{url}: no request was answered")


async def _measure(
    url: str, model: str | None, key: str | None, timeout: float, rows: list[ScenarioRow], rounds: int, seed: int
) -> tuple[str, list[ServeFigures]]:
    require_extra("bench", "bench serve")
    from flagrelease.bench.serve.endpoint import ServedModel
    from flagrelease.bench.serve.run import choose_model, run_rows

    async with ServedModel(url, key, timeout) as endpoint:
        name = await choose_model(endpoint, model)
        return name, await run_rows(endpoint, name, rows, rounds, seed, _say)


def _say(result: ServeFigures) -> None:
    row = result.row
    print(
        f"{row.scenario}: {row.prompt_tokens} tokens, {row.concurrency} at once: {result.answered} answered, "
        f"{sum(result.failures.values())} failed, {result.throughput:.1f} tok/s in {result.seconds:.1f} s",
        file=sys.stderr,
        flush=True,
    )
