"""Forest plot: differences with their intervals, beside the margin that was fixed beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from flagrelease.page.scale import LinearScale
from flagrelease.page.svg import Drawing, is_narrow, text_width

_RIGHT, _ROW, _TOP, _BOTTOM, _HALF = 160, 46, 10, 44, 17
_NAMES = 40  # height of the name and the numbers above a bar, where there is no room beside it
_EDGE = 20  # beside the axis there


@dataclass(frozen=True, slots=True)
class ForestRow:
    """The difference port minus native, in points of 100. The verdict compares its interval with the margin."""

    name: str
    verdict: str
    value: float
    low: float
    high: float
    margin: float


def forest_plot(
    ident: str,
    rows: Sequence[ForestRow],
    description: str,
    *,
    worse: Literal["left", "right"],
    axis: str,
    width: float,
) -> Markup:
    """Draw a row for each difference: the shaded part is what the margin allows, the bar is the interval.

    Args:
        worse: on which side the margin is: left for scores (more is better), right for rates of faults.
        axis: the title of the axis.
    """
    reach = 1.15 * max(max(abs(row.low), abs(row.high), row.margin) for row in rows)
    narrow = is_narrow(width)
    step = _ROW + (_NAMES if narrow else 0)
    height = _TOP + step * len(rows) + _BOTTOM
    drawing = Drawing(ident, width, height, "Difference from the native model, with the margin", description)
    names = max(text_width(row.name, 13) * 1.08 for row in rows)
    x = LinearScale(-reach, reach, _EDGE if narrow else max(names + 20, 120), width - (_EDGE if narrow else _RIGHT))
    bottom = height - _BOTTOM
    for value, label in x.roomy_ticks(6):
        drawing.line((x(value), _TOP), (x(value), bottom), "grid")
        drawing.text((x(value), bottom + 18), label, "middle", "tick")
    drawing.axis_title(x(0), axis)
    for number, row in enumerate(rows):
        y = _TOP + step * (number + 1) - _ROW / 2
        _draw_row(drawing, x, y, row, -row.margin if worse == "left" else row.margin)
        if narrow:
            _name_above(drawing, width, y - _HALF - _NAMES, row)
        else:
            _name_beside(drawing, x, y, row)
        drawing.line((x(0), y - _HALF), (x(0), y + _HALF), "zero")
    return drawing.markup()


def _draw_row(drawing: Drawing, x: LinearScale, y: float, row: ForestRow, limit: float) -> None:
    style = f"v-{row.verdict}"
    allowed = (x(limit), x.end) if limit < 0 else (x.start, x(limit))
    drawing.rect((allowed[0], y - _HALF), allowed[1] - allowed[0], 2 * _HALF, "allowed")
    drawing.line((x(limit), y - _HALF), (x(limit), y + _HALF), "limit")
    drawing.line((x(row.low), y), (x(row.high), y), f"bar {style}")
    for end in (row.low, row.high):
        drawing.line((x(end), y - 6), (x(end), y + 6), f"bar {style}")
    centre = x(row.value)
    drawing.polygon([(centre - 7, y), (centre, y - 7), (centre + 7, y), (centre, y + 7)], f"fill {style}")


def _name_beside(drawing: Drawing, x: LinearScale, y: float, row: ForestRow) -> None:
    drawing.text((x.start - 14, y - 2), row.name, "end", "label strong")
    drawing.text((x.start - 14, y + 14), f"margin {row.margin:g}", "end", "tick")
    drawing.text((x.end + 12, y - 2), signed(row.value), style="label strong")
    drawing.text((x.end + 12, y + 14), _between(row), style="tick")


def _name_above(drawing: Drawing, width: float, y: float, row: ForestRow) -> None:
    """Fits the width of a telephone: the name in one line, all numbers in the next."""
    drawing.text((0, y + 14), row.name, style="label strong halo")
    drawing.text((0, y + 31), f"margin {row.margin:g}", style="tick halo")
    drawing.text((width, y + 31), f"{signed(row.value)} ({_between(row)})", "end", "tick strong halo")


def _between(row: ForestRow) -> str:
    return f"{signed(row.low)} to {signed(row.high)}"


def signed(value: float) -> str:
    """Format with two decimals and a sign; the minus is as wide as the plus, and 0 has none."""
    shown = f"{value:+.2f}"
    return "0.00" if shown in ("+0.00", "-0.00") else shown.replace("-", "−")
