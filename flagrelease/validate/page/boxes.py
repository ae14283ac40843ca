"""Lengths of answers: a box for each side, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from flagrelease.page.scale import Log
from flagrelease.page.svg import Drawing, text_width

_RIGHT, _ROW, _TOP, _BOTTOM = 24, 44, 10, 46


@dataclass(frozen=True, slots=True)
class BoxPlot:
    """Quantiles of one side at 5, 25, 50, 75 and 95%, all above 0, and the mean."""

    name: str
    style: str
    quantiles: tuple[float, float, float, float, float]
    mean: float


def box_plot(ident: str, boxes: Sequence[BoxPlot], title: str, description: str, axis: str, *, width: float) -> Markup:
    """Draw a row for each side: whiskers to 5 and 95%, a box from 25 to 75%, a bar at the median, a dot at the mean."""
    height = _TOP + _ROW * len(boxes) + _BOTTOM
    drawing = Drawing(ident, width, height, title, description)
    left = 24 + max(text_width(box.name, 13) for box in boxes)
    values = [value for box in boxes for value in (*box.quantiles, box.mean)]
    x = Log(min(values) / 1.2, max(values) * 1.2, left, width - _RIGHT)
    base = height - _BOTTOM
    for value, label in x.roomy_ticks():
        drawing.line((x(value), _TOP), (x(value), base), "grid")
        drawing.text((x(value), base + 18), label, "middle", "tick")
    drawing.axis_title((x.start + x.end) / 2, axis)
    for number, box in enumerate(boxes):
        y = _TOP + _ROW * number + _ROW / 2
        least, low, middle, high, most = (x(value) for value in box.quantiles)
        drawing.text((left - 12, y + 5), box.name, "end", "label strong")
        drawing.line((least, y), (most, y), f"curve {box.style}")
        drawing.rect((low, y - 11), max(high - low, 1), 22, f"box {box.style}")
        drawing.line((middle, y - 11), (middle, y + 11), f"curve {box.style}")
        drawing.circle((x(box.mean), y), 3.5, f"fill {box.style}")
    return drawing.markup()
