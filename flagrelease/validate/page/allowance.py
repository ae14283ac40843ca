"""Shows how much of each limit is used up: all limits of a stage on one scale, whatever their units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from flagrelease.page.scale import LinearScale
from flagrelease.page.svg import Drawing

_RIGHT, _ROW, _TOP, _BOTTOM = 70, 24, 6, 42
_LETTER = 6.9
_MOST = 1.5  # of a limit; more is drawn at the edge, and said in numbers


@dataclass(frozen=True, slots=True)
class Allowance:
    """One limit. `used` and its interval are shares of it: 1 is the limit."""

    name: str
    verdict: str
    used: float
    low: float
    high: float


def allowance_plot(ident: str, rows: Sequence[Allowance], description: str, width: float = 760) -> Markup:
    """Draw a bar for each limit, its interval as a line, and the limit itself at 100%."""
    height = _TOP + _ROW * len(rows) + _BOTTOM
    drawing = Drawing(ident, width, height, "How much of each limit is used", description)
    x = LinearScale(0, _MOST, 24 + _LETTER * max(len(row.name) for row in rows), width - _RIGHT)
    base = height - _BOTTOM
    for value in (0.0, 0.5, 1.0, 1.5):
        drawing.line((x(value), _TOP), (x(value), base), "limit" if value == 1 else "grid")
        drawing.text((x(value), base + 18), f"{value:.0%}", "middle", "tick")
    drawing.text((x(1), height - 6), "the limit", "middle", "tick")
    for number, row in enumerate(rows):
        y = _TOP + _ROW * number + _ROW / 2
        drawing.text((x.start - 10, y + 4), row.name, "end", "tick")
        drawing.rect((x.start, y - 6), max(x(row.used) - x.start, 1.5), 12, f"wash v-{row.verdict}")
        drawing.line((x(row.low), y), (x(row.high), y), f"thin v-{row.verdict}")
        drawing.text((x.end + 10, y + 4), f"{row.used:.0%}" if row.used < 10 else "over 10×", style="label strong")
    drawing.line((x(1), _TOP), (x(1), base), "limit")
    return drawing.markup()
