"""Shows how much of each limit is used up: all limits of a stage on one scale, whatever their units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from flagrelease.page.scale import LinearScale
from flagrelease.page.svg import Drawing, is_narrow, text_width

_RIGHT, _ROW, _NARROW_ROW, _TOP, _BOTTOM = 70, 24, 40, 6, 42
_MOST = 1.5  # of a limit; more is drawn at the edge, and said in numbers


@dataclass(frozen=True, slots=True)
class Allowance:
    """One limit. `used` and its interval are shares of it: 1 is the limit."""

    name: str
    verdict: str
    used: float
    low: float
    high: float


def allowance_plot(ident: str, rows: Sequence[Allowance], description: str, *, width: float) -> Markup:
    """Draw a bar for each limit, its interval as a line, and the limit itself at 100%.

    A limit of which nothing is used has no bar: a dot stands where it would begin.
    """
    narrow = is_narrow(width)
    step = _NARROW_ROW if narrow else _ROW
    height = _TOP + step * len(rows) + _BOTTOM
    drawing = Drawing(ident, width, height, "How much of each limit is used", description)
    left = 16.0 if narrow else 14 + max(text_width(row.name) for row in rows)
    x = LinearScale(0, _MOST, left, width - _RIGHT)
    base = height - _BOTTOM
    for value in (0.0, 0.5, 1.0, 1.5):
        drawing.text((x(value), base + 18), f"{value:.0%}", "middle", "tick")
    drawing.text((x(1), height - 6), "the limit", "middle", "tick")
    for number, row in enumerate(rows):
        y = _TOP + step * (number + 1) - _ROW / 2
        for value in (0.0, 0.5, 1.5):
            drawing.line((x(value), y - _ROW / 2), (x(value), y + _ROW / 2), "grid")
        _draw_row(drawing, x, y, row)
        if narrow:
            drawing.text((0, y - _ROW / 2 - 2), row.name, style="tick")
        else:
            drawing.text((x.start - 10, y + 4), row.name, "end", "tick")
        drawing.line((x(1), y - _ROW / 2), (x(1), y + _ROW / 2), "limit")
    return drawing.markup()


def _draw_row(drawing: Drawing, x: LinearScale, y: float, row: Allowance) -> None:
    if x(row.used) - x.start >= 1:
        drawing.rect((x.start, y - 6), x(row.used) - x.start, 12, f"wash v-{row.verdict}")
    else:
        drawing.circle((x.start, y), 3, f"fill v-{row.verdict}")
    if row.high > row.low:
        drawing.line((x(row.low), y), (x(row.high), y), f"thin v-{row.verdict}")
    drawing.text((x.end + 10, y + 4), f"{row.used:.0%}" if row.used < 10 else "over 10×", style="label strong")
