"""The section of the long-context stage: what was found at which depth of which length, by the release and natively."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from flagrelease.page.panel import Panel, Picture, Table
from flagrelease.records.report import Stage
from flagrelease.validate.long_context.figures import CellFigures, LongContextFigures, SideFigures
from flagrelease.validate.page.forest import ForestRow, forest_plot, signed
from flagrelease.validate.page.heat_map import HeatCell, HeatRow, heat_map


def long_context_panels(stage: Stage) -> list[Panel]:
    """The heat map of each side, the difference over all questions, and every cell as a table."""
    if not stage.figures:
        return []
    figures = LongContextFigures.model_validate(stage.figures, strict=False)
    return [_map(figures, "chip"), _map(figures, "native"), _difference(figures)]


def shortest(tokens: int) -> str:
    """A length as readers know it: 4k, 128k, 1M; the number itself where it is none of these."""
    for unit, sign in ((1 << 20, "M"), (1 << 10, "k")):
        if tokens >= unit and tokens % unit == 0:
            return f"{tokens // unit}{sign}"
    return str(tokens)


def _map(figures: LongContextFigures, side: str) -> Panel:
    by_place = {(cell.length, cell.depth): cell for cell in figures.cells}
    lengths = [row.length for row in figures.lengths]
    right: Callable[[CellFigures], int] = (lambda cell: cell.chip) if side == "chip" else (lambda cell: cell.native)
    rows = []
    for column in figures.depths:
        cells = [by_place[length, column.depth] for length in lengths]
        verdicts = [cell.verdict if side == "chip" else None for cell in cells]
        rows.append(
            HeatRow(
                f"{column.depth:g}%",
                tuple(
                    HeatCell(right(cell) / cell.items, verdict, f"{right(cell)} of {cell.items}")
                    for cell, verdict in zip(cells, verdicts, strict=True)
                ),
            )
        )
    who = "this release" if side == "chip" else "the native model"
    words = _words(figures, side, who)
    plot = partial(
        heat_map,
        f"contexts-{side}",
        [shortest(length or 0) for length in lengths],
        rows,
        title=f"Answers found by {who}",
        description=words,
        across="tokens of the prompt",
        down="depth of the entry",
    )
    table = None
    if side == "chip":
        table = Table(("length", "depth", ">this release", ">native", ">lost", ">gained", ">p", "outcome"))
        for cell in (*figures.cells, *figures.lengths, *figures.depths):
            length = "all" if cell.length is None else f"{cell.length:,}"
            depth = "all" if cell.depth is None else f"{cell.depth:g}%"
            table.rows.append(
                (
                    length, depth, f"{cell.chip} of {cell.items}", f"{cell.native} of {cell.items}", str(cell.lost),
                    str(cell.gained), f"{cell.p:.2g}", cell.verdict,
                )
            )  # fmt: skip
    return Panel(f"Retrieval by {who}, by length and depth", words, picture=Picture.of(plot), table=table)


def _words(figures: LongContextFigures, side: str, who: str) -> str:
    answers: SideFigures = figures.chip if side == "chip" else figures.native
    lost = [cell for cell in figures.cells if cell.verdict == "fail"]
    said = (
        f"{answers.stack}: {answers.score:.1f}% right, {answers.invalid:.1f}% without a number, "
        f"{answers.truncated:.1f}% cut off; {answers.prompt_tokens:,} tokens of prompts, {answers.generated_tokens:,} "
        "of answers."
    )
    if side != "chip":
        return said
    blind = sum(cell.verdict == "not-informative" for cell in figures.cells)
    outcome = f"{len(lost)} of {len(figures.cells)} cells are lost beyond chance" if lost else "No cell is lost"
    return f"{said} {outcome}{f'; in {blind} a loss could not show' if blind else ''}."


def _difference(figures: LongContextFigures) -> Panel:
    overall = figures.overall
    row = ForestRow("all questions", overall.verdict, overall.difference, overall.lower, overall.upper, overall.margin)
    words = (
        f"The release's share of right answers less the native one: {signed(overall.difference)} points, "
        f"{signed(overall.lower)} to {signed(overall.upper)}; {overall.margin:g} fewer still count as aligned."
    )
    axis = "points of 100: ← fewer right, more right →"
    plot = partial(forest_plot, "contexts-difference", [row], words, worse="left", axis=axis)
    return Panel("Difference over all lengths and depths", words, picture=Picture.of(plot))
