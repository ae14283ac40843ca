"""The result as a table, as a JSON document and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from flagrelease import __version__, console
from flagrelease.bench.plot import Chart, PlotSeries, draw
from flagrelease.bench.serve.drafts import DATA
from flagrelease.bench.serve.figures import Percentiles, ServeFigures

_WIDTH = 140  # columns of the table where there is no terminal to fit


def show(results: Sequence[ServeFigures]) -> None:
    """Print the table."""
    out = console.out()
    if not out.is_terminal:
        out.width = _WIDTH
    out.print(_table(results))


def _table(results: Sequence[ServeFigures]) -> Table:
    """A line a row: mean tokens of prompts and answers; latencies are p50 / p90 / p99."""
    shown = console.table(
        "scenario", ">prompt", ">answer", ">at once", ">answered", ">tok/s", ">first text, s", ">per token, ms",
        ">gap p99, ms", "failed",
    )  # fmt: skip
    for each in results:
        row = each.row
        prompt = f"~{row.prompt_tokens}" if each.prompt_tokens is None else f"{each.prompt_tokens:.0f}"
        answer = f"{each.tokens / max(each.answered, 1):.0f}"
        gap = "-" if each.gap is None else f"{each.gap.p99 * 1e3:.1f}"
        shown.add_row(
            row.scenario, prompt, answer, str(row.concurrency), str(each.answered), f"{each.throughput:.1f}",
            _three(each.first, 1), _three(each.per_token, 1e3), gap,
            ", ".join(f"{count} x {kind}" for kind, count in each.failures.items()),
        )  # fmt: skip
    return shown


def _three(value: Percentiles | None, factor: float) -> str:
    if value is None:
        return "-"
    return " / ".join(f"{each * factor:.3g}" for each in (value.p50, value.p90, value.p99))


def remarks(results: Sequence[ServeFigures]) -> list[str]:
    """What a reader must know beside the table."""
    said = []
    if any(each.answered and not each.counted for each in results):
        said.append("the server does not count tokens: pieces of text are counted instead")
    for each in results:
        row = each.row
        of = f"{row.scenario}, {row.prompt_tokens} tokens, {row.concurrency} at once"
        if each.failures:
            said.append(f"{of}: {each.example}")
        if each.drafts is not None:
            said.append(f"{of}: {each.drafts}")
    if any(each.drafts is not None for each in results):
        said.append(f"how many drafts were right was {DATA}")
    return said


def document(results: Sequence[ServeFigures], url: str, model: str, rounds: int, date: str) -> dict[str, Any]:
    """Everything, for JSON. Seconds and tokens a second."""
    return {
        "flagrelease": __version__,
        "date": date,
        "url": url,
        "model": model,
        "rounds": rounds,
        "rows": [each.document() for each in results],
    }


def plot(results: Sequence[ServeFigures]) -> str:
    """SVG: throughput and time to the first text over concurrency, and over the prompt's length."""
    swept = {name: [r for r in results if r.row.scenario == name] for name in ("chat", "long")}
    throughput = [
        PlotSeries(name, tuple((r.row.concurrency, r.throughput) for r in rows if r.answered))
        for name, rows in swept.items()
    ]
    first = [
        PlotSeries(f"{name} {which}", tuple((r.row.concurrency, getattr(r.first, which)) for r in rows if r.first))
        for name, rows in swept.items()
        for which in ("p50", "p99")
    ]
    lengths = [r for r in results if r.row.scenario == "context"]
    pace = [
        PlotSeries("throughput", tuple((_length(r), r.throughput) for r in lengths if r.answered)),
        PlotSeries("1 / time per token", tuple((_length(r), 1 / r.per_token.p50) for r in lengths if r.per_token)),
    ]
    reading = [PlotSeries("p50", tuple((_length(r), r.first.p50) for r in lengths if r.first))]
    charts = (
        Chart("Throughput", "requests at once", "answer tokens a second", tuple(throughput)),
        Chart("Time to the first text", "requests at once", "seconds", tuple(first)),
        Chart("Context", "tokens of the prompt", "answer tokens a second, one request at a time", tuple(pace)),
        Chart("Context: time to the first text", "tokens of the prompt", "seconds", tuple(reading)),
    )
    return draw([chart for chart in charts if any(series.points for series in chart.series)])


def _length(result: ServeFigures) -> float:
    return result.row.prompt_tokens if result.prompt_tokens is None else round(result.prompt_tokens)
