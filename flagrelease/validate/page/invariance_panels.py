"""The section of the invariance stage: a matrix of circumstances and measures, and the texts that are not equal."""

from __future__ import annotations

from functools import partial

from flagrelease.page.panel import Panel, Picture, Table
from flagrelease.records.report import Stage, StageVerdict
from flagrelease.validate.invariance.figures import CircumstanceFigures, InvarianceFigures
from flagrelease.validate.page.matrix import Cell, MatrixRow, verdict_matrix

_COLUMNS = ("texts that are equal", "sure, yet another text", "mean difference, nats", "largest difference, nats",
            "found in a register")  # fmt: skip
_NOTHING = Cell("not-run", "", "not measured here")


def invariance_panels(stage: Stage) -> list[Panel]:
    """The matrix with its table, lengths, and where texts part."""
    if not stage.figures:
        return []
    figures = InvarianceFigures.model_validate(stage.figures)
    rows = [MatrixRow(row.name, _cells(row, figures)) for row in figures.circumstances]
    held = sum(row.verdict == "pass" for row in figures.circumstances)
    words = (
        f"{held} of {len(rows)} circumstances hold, in {figures.requests} requests ({figures.prompt_tokens:,} tokens "
        f"of prompts, {figures.tokens:,} of answers). Limits: {figures.mean_limit:.2g} nats on average, "
        f"{figures.largest_limit:.2g} at most, {figures.same_limit:.0%} of the texts equal; less than {figures.tie:g} "
        "nats between the first two tokens is a near tie."
    )
    plot = partial(verdict_matrix, "invariance", _COLUMNS, rows, title="Circumstances and measures", description=words)
    columns = ("circumstance", "compared with", ">equal", ">near ties", ">sure", ">mean", ">largest", "outcome", "why")
    table = Table(columns)
    table.rows.extend(_row(row) for row in figures.circumstances)
    return [Panel("What changes the answers", words, Picture.of(plot), table), *_lengths(figures), *_parted(figures)]


def _cells(row: CircumstanceFigures, figures: InvarianceFigures) -> tuple[Cell, ...]:
    found = Cell("fail" if row.kind == "lengths" and row.verdict == "fail" else "pass", f"{row.right} of {row.asked}")
    if row.verdict == "not-informative" or not row.right:
        found = Cell("not-informative", f"{row.right} of {row.asked}")
    found = found if row.asked else _NOTHING
    if row.kind == "lengths":
        return _NOTHING, _NOTHING, _NOTHING, _NOTHING, found
    few = row.same < figures.same_limit * row.texts
    equal: StageVerdict = "cannot-tell" if row.unknown else "fail" if few else "pass"
    return (
        Cell(equal, f"{row.same} of {row.texts}"),
        Cell("fail" if row.clear else "pass", str(row.clear)),
        _measured(row.mean_difference, figures.mean_limit),
        _measured(row.largest_difference, figures.largest_limit),
        found,
    )


def _measured(value: float | None, limit: float) -> Cell:
    return _NOTHING if value is None else Cell("pass" if value <= limit else "fail", _short(value))


def _row(row: CircumstanceFigures) -> tuple[str, ...]:
    differences = ("–" if each is None else _short(each) for each in (row.mean_difference, row.largest_difference))
    counts = (f"{row.same} of {row.texts}", str(row.ties), str(row.clear))
    return row.name, row.against, *counts, *differences, row.verdict, row.why


def _lengths(figures: InvarianceFigures) -> list[Panel]:
    if not figures.lengths:
        return []
    table = Table((">tokens of the prompt", ">found"))
    table.rows.extend((f"{row.tokens:,}", f"{row.right} of {row.asked}") for row in figures.lengths)
    words = "Questions to registers of several lengths, each sent alone: what they ask for stands in the first half."
    return [Panel("Found again, by length", words, table=table, folded=False)]


def _parted(figures: InvarianceFigures) -> list[Panel]:
    table = Table(("circumstance", "prompt", ">token", ">margin, nats", "where it parts"))
    for row in figures.circumstances:
        table.rows.extend(
            (
                row.name,
                each.prompt,
                str(each.at + 1),
                "–" if each.margin is None else f"{each.margin:.2f}",
                each.parting,
            )
            for each in row.parted
        )
    words = f"{len(table.rows)} texts are not those that they are compared with."
    return [Panel("Where texts part", words, table=table)] if table.rows else []


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"
