"""The section about benchmarks: a forest plot of all of them, then the items, lengths and test power of each one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from flagrelease.page.panel import Panel, Picture, Table
from flagrelease.records.report import Benchmark, PartVerdict
from flagrelease.validate.exams.published import PublishedFigures
from flagrelease.validate.page.boxes import BoxPlot, box_plot
from flagrelease.validate.page.forest import ForestRow, forest_plot, signed
from flagrelease.validate.page.outcomes import OutcomePoint, outcome_bars
from flagrelease.validate.page.published_panels import published_panels
from flagrelease.validate.page.strip import StripItem, in_order, item_strip

_SIDES = (("native", "native"), ("chip", "this release"))
Side = Literal["native", "chip"]


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Test(_Read):
    difference: float
    se: float
    se_within: float
    lower: float
    upper: float
    margin: float
    alpha: float
    equivalent: bool
    look: int
    looks: tuple[int, ...]
    further_planned: int
    further_needed: int | None


class _Chance(_Read):
    drop: float
    passes: float = Field(alias="pass")
    fails: float = Field(alias="fail")
    cannot_tell: float = Field(alias="cannot-tell")


class _McNemar(_Read):
    only_native: int
    only_chip: int
    p: float


class _Interval(_Read):
    low: float
    high: float
    confidence: float


class _Tokens(_Read):
    total: int
    mean: float
    quantiles: dict[str, float]


class _Side(_Read):
    invalid: float
    truncated: float
    alike: float
    run_sd: float | None = None
    tokens: _Tokens


class _ItemSide(_Read):
    right: int
    invalid: int
    truncated: int
    tokens: float


class _Item(_Read):
    id: str
    native: _ItemSide | None = None
    chip: _ItemSide


class _Figures(_Read):
    """What `validate/exams/figures.py` makes; without a native side it has only `sides.chip` and `items`."""

    test: _Test | None = None
    chances: tuple[_Chance, ...] = ()
    mcnemar: _McNemar | None = None
    permutation_p: float | None = None
    over_items: _Interval | None = None
    flips: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()
    published: tuple[PublishedFigures, ...] = ()
    not_informative: str | None = None
    sides: dict[Side, _Side]
    items: tuple[_Item, ...]


def differences(benchmarks: Sequence[Benchmark]) -> list[ForestRow]:
    """The differences of all benchmarks that have a native side."""
    rows = []
    for benchmark in benchmarks:
        test = _Figures.model_validate(benchmark.figures).test
        if test is not None:
            bounds = test.lower, test.upper
            rows.append(ForestRow(benchmark.task, benchmark.verdict, test.difference, *bounds, test.margin))
    return rows


def forest_panel(benchmarks: Sequence[Benchmark]) -> list[Panel]:
    """All benchmarks that have a native side, each with its margin."""
    rows = differences(benchmarks)
    if not rows:
        return []
    table = Table(("benchmark", ">difference", ">interval of the test", ">margin", "verdict"))
    for row in rows:
        between = f"{signed(row.low)} to {signed(row.high)}"
        table.rows.append((row.name, signed(row.value), between, f"−{row.margin:g}", row.verdict))
    words = "; ".join(_in_words(row) for row in rows) + "."
    axis = "points of 100: ← worse, better →"
    picture = Picture.of(partial(forest_plot, "forest", rows, words, worse="left", axis=axis))
    return [Panel("Difference from the native model", words, picture, table)]


def _in_words(row: ForestRow) -> str:
    said: dict[str, str] = {"pass": "inside", "fail": "beyond", "cannot-tell": "not decided against"}
    said["not-informative"] = "not a test of"
    return (
        f"{row.name}: {signed(row.value)} points ({signed(row.low)} to {signed(row.high)}), "
        f"{said[row.verdict]} the margin of −{row.margin:g}"
    )


def benchmark_panels(number: int, benchmark: Benchmark) -> list[Panel]:
    """The panels of one benchmark; `number` makes their ids unique in the page."""
    figures = _Figures.model_validate(benchmark.figures)
    panels = [_test_panel(benchmark.verdict, figures)] if figures.test is not None else []
    if figures.obstacles:
        said = Table(("reason",), [(sentence,) for sentence in figures.obstacles])
        panels.append(Panel("What keeps the test from a verdict", "Whatever the test says.", table=said, folded=False))
    panels += published_panels(figures.published)
    panels.append(_items_panel(number, benchmark, figures))
    panels.append(_lengths_panel(number, figures))
    if figures.chances:
        panels.append(_power_panel(number, figures))
    return panels


def _test_panel(verdict: PartVerdict, figures: _Figures) -> Panel:
    test, mcnemar, over = figures.test, figures.mcnemar, figures.over_items
    assert test is not None
    rows: list[tuple[str, ...]] = [
        ("difference of the scores, points", signed(test.difference)),
        ("standard error, as the test takes it", f"{test.se:.3f}"),
        ("standard error, as seen within items", f"{test.se_within:.3f}"),
        (
            f"bounds of the test at look {test.look} of {len(test.looks)}",
            f"{signed(test.lower)} to {signed(test.upper)}",
        ),
    ]
    if mcnemar is not None:
        odd = f"{mcnemar.only_native} by native alone, {mcnemar.only_chip} by this release alone"
        rows.append((f"items solved by one side: {odd}", f"exact McNemar p {mcnemar.p:.3g}"))
    if figures.permutation_p is not None:
        rows.append(("any difference, labels exchanged within items", f"p {figures.permutation_p:.3g}"))
    if over is not None:
        between = f"{signed(over.low)} to {signed(over.high)}"
        rows.append((f"on other questions of this kind, {over.confidence:.0%} interval", between))
    rows.append(("items whose majority answer changed", f"{len(figures.flips)} of {len(figures.items)}"))
    if len(runs := [f"{figures.sides[side].run_sd:.2f} {name}" for side, name in _SIDES if side in figures.sides]) == 2:
        rows.append(("score from run to run, standard deviation", ", ".join(runs)))
    return Panel(
        "The test",
        _say_test(verdict, test, figures.not_informative),
        table=Table(("what", ">value"), rows),
        folded=False,
    )


def _say_test(verdict: PartVerdict, test: _Test, why: str | None) -> str:
    if verdict == "cannot-tell" and test.further_needed is not None:
        return f"As things are, {test.further_needed} more answers to each question would decide it."
    if verdict == "cannot-tell":
        return "The answers do not decide it."
    if verdict == "not-informative":
        return f"This test tells nothing, whatever the release answers: {why}."
    if verdict == "fail":
        return f"The release is worse by more than {test.margin:g} points."
    if test.equivalent:
        return "Not worse than the margin, and not better than it either: equivalent."
    return "Not worse than the margin. It may be better by more than the margin, which is worth a look, too."


def _items_panel(number: int, benchmark: Benchmark, figures: _Figures) -> Panel:
    repeats = benchmark.repeats
    table = Table(("item", ">native right", ">release right", ">invalid", ">cut off", ">mean tokens"))
    for item in figures.items:
        pair = (item.native, item.chip)
        table.rows.append(
            (
                item.id,
                *("" if side is None else f"{side.right} of {repeats}" for side in pair),
                *(" / ".join(f"{getattr(side, name)}" for side in pair if side) for name in ("invalid", "truncated")),
                " / ".join(f"{side.tokens:,.0f}" for side in pair if side),
            )
        )
    strip = [
        StripItem(i.id, i.native.right / repeats, i.chip.right / repeats) for i in figures.items if i.native is not None
    ]
    if not strip:
        return Panel("Questions", f"{len(figures.items)} questions, without a native side.", table=table)
    words = _say_items(strip)
    picture = Picture.of(partial(item_strip, f"items-{number}", strip, words))
    legend = (("chip", "the darker, the more often right"), ("up", "better in this release"), ("down", "worse"))
    return Panel("Question by question", words, picture, table, legend=legend)


def _say_items(items: list[StripItem]) -> str:
    same = sum(item.native == item.port for item in items)
    better = sum(item.port > item.native for item in items)
    worst = min(in_order(items), key=lambda item: item.port - item.native)
    said = f"{same} questions with the same share of right answers, {better} better, {len(items) - same - better} worse"
    if worst.port < worst.native:
        said += f"; the largest loss is {worst.name}, from {worst.native:.0%} to {worst.port:.0%}"
    return said + "."


def _lengths_panel(number: int, figures: _Figures) -> Panel:
    boxes, table = (
        [],
        Table(("side", ">5%", ">25%", ">median", ">75%", ">95%", ">mean", ">all", ">invalid", ">cut off")),
    )
    for side, name in _SIDES:
        if side in figures.sides:
            found = figures.sides[side]
            a, b, c, d, e = (found.tokens.quantiles[key] for key in ("0.05", "0.25", "0.5", "0.75", "0.95"))
            at_least_one = (max(a, 1), max(b, 1), max(c, 1), max(d, 1), max(e, 1))
            boxes.append(BoxPlot(name, side, at_least_one, max(found.tokens.mean, 1)))
            table.rows.append(
                (
                    name, *(f"{value:,.0f}" for value in (a, b, c, d, e, found.tokens.mean, found.tokens.total)),
                    f"{found.invalid:.2f}%", f"{found.truncated:.2f}%",
                )
            )  # fmt: skip
    words = "; ".join(
        f"{row[0]}: half of the answers have {row[2]} to {row[4]} tokens, mean {row[6]}" for row in table.rows
    )
    words += ". A shift in length is an early sign of a fault."
    title = "Lengths of answers"
    axis = "tokens of an answer, reasoning included"
    picture = Picture.of(partial(box_plot, f"lengths-{number}", boxes, title, words, axis))
    return Panel(title, words, picture, table)


def _power_panel(number: int, figures: _Figures) -> Panel:
    rows = [OutcomePoint(chance.drop, chance.passes, chance.fails, chance.cannot_tell) for chance in figures.chances]
    table = Table((">truly worse by", ">pass", ">cannot tell", ">fail"))
    for row in rows:
        shares = (row.passes, row.cannot_tell, row.fails)
        table.rows.append((f"{row.drop:.2f}", *(f"{share:.1%}" for share in shares)))
    words = (
        f"With the spread that was seen, a port as good as native passes with {rows[0].passes:.0%}. "
        + " ".join(f"One {row.drop:.2f} points worse passes with {row.passes:.1%}." for row in rows[2::2])
        + " From left to right in each bar: pass, cannot tell, fail."
    )
    legend = (("pass", "pass"), ("cannot-tell", "cannot tell"), ("fail", "fail"))
    picture = Picture.of(partial(outcome_bars, f"power-{number}", rows, words))
    return Panel("What this test can tell", words, picture, table, legend=legend)
