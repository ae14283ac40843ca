"""Heat map of shares, such as the depth of a needle by the length of the text: the darker, the more often right.

Every cell has its share in figures, so nothing depends on telling two shades apart; a failing cell is framed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from flagrelease.page.svg import Drawing, is_narrow, text_width
from flagrelease.records.report import StageVerdict

_ROW, _LINE, _GAP, _LEVELS = 28, 16, 2, 10


@dataclass(frozen=True, slots=True)
class HeatCell:
    """A share from 0 to 1, None where nothing was asked; `verdict`, where there is one, frames a cell that failed."""

    share: float | None
    verdict: StageVerdict | None = None
    tip: str = ""


@dataclass(frozen=True, slots=True)
class HeatRow:
    """A name and a cell for each column."""

    name: str
    cells: tuple[HeatCell, ...]


def heat_map(
    ident: str,
    columns: Sequence[str],
    rows: Sequence[HeatRow],
    *,
    title: str,
    description: str,
    across: str,
    down: str,
    width: float,
) -> Markup:
    """Draw a cell for each row and column; `across` and `down` say what the columns and rows are.

    Raises:
        ValueError: a row has not as many cells as there are columns.
    """
    if any(len(row.cells) != len(columns) for row in rows):
        raise ValueError("a row of the heat map has another number of cells than there are columns")
    narrow = is_narrow(width)
    left = 10 + max(text_width(row.name) for row in rows)
    column = (width - left) / len(columns)
    every = 1  # columns are named as often as there is room
    while max(map(text_width, columns)) + 4 > column * every:
        every += 1
    top = _LINE + 8
    base = top + _ROW * len(rows)
    drawing = Drawing(ident, width, base + 2 * _LINE + 10, title, description)
    drawing.text((0, _LINE - 2), f"{down} ↓", style="tick")
    for number, row in enumerate(rows):
        y = top + _ROW * number
        drawing.text((left - 10, y + _ROW / 2 + 4), row.name, "end", "tick")
        for place, cell in enumerate(row.cells):
            where = f"{row.name}, {columns[place]}"
            _draw_cell(drawing, (left + column * place, y), column, cell, where, narrow=narrow)
    for number, name in enumerate(columns):
        if number % every == 0:
            drawing.text((left + column * (number + 0.5), base + _LINE), name, "middle", "tick")
    drawing.text((width, base + 2 * _LINE + 4), f"{across} →", "end", "tick")
    return drawing.markup()


def _draw_cell(
    drawing: Drawing, corner: tuple[float, float], column: float, cell: HeatCell, where: str, *, narrow: bool
) -> None:
    x, y = corner
    inside, size = (x + _GAP / 2, y + _GAP / 2), (column - _GAP, _ROW - _GAP)
    middle = (x + column / 2, y + _ROW / 2 + 4)
    if cell.share is None:
        drawing.rect(inside, *size, "unasked", f"{where}: {cell.tip or 'not asked'}")
        drawing.text(middle, "–", "middle", "tick")
        return
    level = min(_LEVELS, max(0, int(cell.share * _LEVELS + 1e-9)))  # full colour is only for all
    failed = " failed" if cell.verdict == "fail" else ""
    drawing.rect(inside, *size, f"heat h{level}{failed}", f"{where}: {cell.tip or f'{cell.share:.0%}'}")
    percent = int(100 * cell.share + 1e-9)  # 100 means all of them
    shown = str(percent) if narrow else f"{percent}%"
    drawing.text(middle, shown, "middle", f"on heat-{'dark' if level > 5 else 'pale'}{' small' if narrow else ''}")
