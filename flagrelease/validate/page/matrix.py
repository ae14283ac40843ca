"""Matrix of verdicts: what was compared in the rows, under which conditions in the columns, a sign in each cell.

On a telephone the columns have no room, so every row becomes a short list of its cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from flagrelease.page.signs import SIGNS
from flagrelease.page.svg import Drawing, is_narrow, text_width, wrap
from flagrelease.records.report import StageVerdict

_CELL, _GAP, _LINE, _EDGE = 40, 4, 15, 4


@dataclass(frozen=True, slots=True)
class Cell:
    """One comparison; `words` is short and stands below the sign, `tip` is shown under a mouse."""

    verdict: StageVerdict
    words: str = ""
    tip: str = ""


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """A name and a cell for each column."""

    name: str
    cells: tuple[Cell, ...]


def verdict_matrix(
    ident: str,
    columns: Sequence[str],
    rows: Sequence[MatrixRow],
    *,
    title: str,
    description: str,
    width: float,
) -> Markup:
    """Draw a cell for each row and column, in the colour of its verdict and with its sign.

    Raises:
        ValueError: a row has not as many cells as there are columns.
    """
    if any(len(row.cells) != len(columns) for row in rows):
        raise ValueError("a row of the matrix has another number of cells than there are columns")
    if is_narrow(width):
        return _as_lists(ident, columns, rows, title, description, width)
    left = min(12 + max(text_width(row.name) for row in rows), width / 3)
    column = (width - left) / len(columns)
    heads = [wrap(name, column - 2 * _GAP, 11) for name in columns]
    top = _LINE * max(map(len, heads)) + 6
    drawing = Drawing(ident, width, top + _CELL * len(rows) + _EDGE, title, description)
    for number, lines in enumerate(heads):
        for place, line in enumerate(reversed(lines)):
            at = (left + column * (number + 0.5), top - 8 - _LINE * place)
            drawing.text(at, line, "middle", "tick small")
    for number, row in enumerate(rows):
        y = top + _CELL * number
        names = wrap(row.name, left - 12)
        for place, line in enumerate(names):
            drawing.text((left - 12, y + _CELL / 2 + 4 + _LINE * (place - (len(names) - 1) / 2)), line, "end", "tick")
        for place, cell in enumerate(row.cells):
            _draw_cell(drawing, left + column * place, y, column, cell, f"{row.name}, {columns[place]}")
    return drawing.markup()


def _draw_cell(drawing: Drawing, x: float, y: float, column: float, cell: Cell, where: str) -> None:
    middle, style = x + column / 2, f"on v-{cell.verdict}"
    corner, size = (x + _GAP / 2, y + _GAP / 2), (column - _GAP, _CELL - _GAP)
    drawing.rect(corner, *size, f"wash v-{cell.verdict}", f"{where}: {cell.tip or cell.words or cell.verdict}")
    drawing.text((middle, y + (18 if cell.words else 25)), SIGNS[cell.verdict], "middle", style)
    if cell.words:
        drawing.text((middle, y + 32), cell.words, "middle", f"{style} small")


def _as_lists(
    ident: str, columns: Sequence[str], rows: Sequence[MatrixRow], title: str, description: str, width: float
) -> Markup:
    """A heading for each row, and under it a line for each cell: sign, column, words."""
    line, head = 22, 26
    drawing = Drawing(ident, width, (head + line * len(columns)) * len(rows) + _EDGE, title, description)
    y = 0.0
    for row in rows:
        drawing.text((0, y + 18), row.name, style="label strong")
        y += head
        for name, cell in zip(columns, row.cells, strict=True):
            drawing.rect((0, y + 2), 18, 18, f"wash v-{cell.verdict}")
            drawing.text((9, y + 15), SIGNS[cell.verdict], "middle", f"on v-{cell.verdict}")
            drawing.text((26, y + 15), name, style="tick")
            if cell.words:
                drawing.text((width - 2, y + 15), cell.words, "end", "tick strong")
            y += line
    return drawing.markup()
