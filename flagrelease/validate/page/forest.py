"""Forest plot: differences with their intervals, beside the margin that was fixed beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from flagrelease.page.scale import LinearScale
from flagrelease.page.svg import Drawing

_RIGHT, _ROW, _TOP, _BOTTOM = 160, 46, 30, 44
_LETTER = 7.8  # width of a strong one, at most on average


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
    width: float = 760,
) -> Markup:
    """Draw a row for each difference: the shaded part is what the margin allows, the bar is the interval.

    Args:
        worse: on which side the margin is: left for scores (more is better), right for rates of faults.
        axis: the title of the axis.
    """
    reach = 1.15 * max(max(abs(row.low), abs(row.high), row.margin) for row in rows)
    height = _TOP + _ROW * len(rows) + _BOTTOM
    drawing = Drawing(ident, width, height, "Difference from the native model, with the margin", description)
    left = 30 + _LETTER * max(len(row.name) for row in rows)
    x = LinearScale(-reach, reach, max(left, 120), width - _RIGHT)
    bottom = height - _BOTTOM
    for value, label in x.ticks(6):
        drawing.line((x(value), _TOP - 8), (x(value), bottom), "grid")
        drawing.text((x(value), bottom + 18), label, "middle", "tick")
    drawing.text((x(0), height - 6), axis, "middle", "tick")
    for number, row in enumerate(rows):
        _draw_row(drawing, x, _TOP + _ROW * number + _ROW / 2, row, -row.margin if worse == "left" else row.margin)
    drawing.line((x(0), _TOP - 8), (x(0), bottom), "zero")
    return drawing.markup()


def _draw_row(drawing: Drawing, x: LinearScale, y: float, row: ForestRow, limit: float) -> None:
    style = f"v-{row.verdict}"
    allowed = (x(limit), x.end) if limit < 0 else (x.start, x(limit))
    drawing.rect((allowed[0], y - 17), allowed[1] - allowed[0], 34, "allowed")
    drawing.line((x(limit), y - 17), (x(limit), y + 17), "limit")
    drawing.line((x(row.low), y), (x(row.high), y), f"bar {style}")
    for end in (row.low, row.high):
        drawing.line((x(end), y - 6), (x(end), y + 6), f"bar {style}")
    centre = x(row.value)
    drawing.polygon([(centre - 7, y), (centre, y - 7), (centre + 7, y), (centre, y + 7)], f"fill {style}")
    drawing.text((x.start - 14, y + 1), row.name, "end", "label strong")
    drawing.text((x.start - 14, y + 16), f"margin {row.margin:g}", "end", "tick")
    drawing.text((x.end + 12, y + 1), signed(row.value), style="label strong")
    drawing.text((x.end + 12, y + 16), f"{signed(row.low)} to {signed(row.high)}", style="tick")


def signed(value: float) -> str:
    """Format with two decimals and a sign; the minus is as wide as the plus, and 0 has none."""
    shown = f"{value:+.2f}"
    return "0.00" if shown in ("+0.00", "-0.00") else shown.replace("-", "−")
