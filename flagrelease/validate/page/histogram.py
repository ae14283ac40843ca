"""Draws histograms of several runs in one picture, with limits as lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from flagrelease.page.scale import LinearScale, Log, power_of_ten
from flagrelease.page.svg import Drawing, Point, text_width

_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM, _LINE = 290, 52, 24, 4, 46, 16


@dataclass(frozen=True, slots=True)
class Series:
    """How many values of one run fall into each of the shared bins; drawn in the class `style`."""

    name: str
    style: str
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """A value that gets a line: a limit (`limit`) or a measured mean (`mean`)."""

    value: float
    name: str
    style: str


def histogram(
    ident: str,
    edges: Sequence[float],
    series: Sequence[Series],
    *,
    title: str,
    description: str,
    axis: str,
    marks: Sequence[Mark] = (),
    open_below: bool = False,
    width: float,
) -> Markup:
    """Draw the share in each bin as steps; the axis is logarithmic, so values are above 0.

    Args:
        edges: of the bins, increasing, one more than there are counts.
        open_below: the first bin also holds all lower values, and its label says so.
    """
    drawing = Drawing(ident, width, _HEIGHT, title, description)
    reach = [*edges, *(mark.value for mark in marks)]
    x = Log(min(reach), max(reach), _LEFT, width - _RIGHT)
    shares = [[count / max(sum(each.counts), 1) for count in each.counts] for each in series]
    top = _TOP + _LINE * len(marks)
    y = LinearScale(0, max(max(each) for each in shares) * 1.08 or 1, _HEIGHT - _BOTTOM, top)
    _axes(drawing, x, y, axis, f"≤ {power_of_ten(round(math.log10(edges[0])))}" if open_below else None)
    for each, share in zip(series, shares, strict=True):
        outline = _steps(edges, share, x, y)
        drawing.polygon([*outline, (outline[-1][0], y(0)), (outline[0][0], y(0))], f"area {each.style}")
        drawing.polyline(outline, f"curve {each.style}")
    for number, mark in enumerate(sorted(marks, key=lambda mark: mark.value)):
        # Each name has a line of its own above the bins, and stands to the right of its mark where there is room.
        on_right = x(mark.value) + 6 + text_width(mark.name) < width
        level = _TOP + _LINE * number
        drawing.line((x(mark.value), level), (x(mark.value), y(0)), mark.style)
        at = (x(mark.value) + (6 if on_right else -6), level + 11)
        drawing.text(at, mark.name, "start" if on_right else "end", "tick halo")
    return drawing.markup()


def _steps(edges: Sequence[float], shares: Sequence[float], x: Log, y: LinearScale) -> list[Point]:
    points: list[Point] = []
    for low, high, share in zip(edges, edges[1:], shares, strict=False):
        points += [(x(low), y(share)), (x(high), y(share))]
    return points


def _axes(drawing: Drawing, x: Log, y: LinearScale, axis: str, lowest: str | None) -> None:
    base = y(0)
    for value, _ in y.ticks(4):
        drawing.line((x.start, y(value)), (x.end, y(value)), "grid")
        drawing.text((x.start - 8, y(value) + 4), f"{value:.0%}", "end", "tick")
    for place, (value, label) in enumerate(x.roomy_ticks()):
        drawing.line((x(value), base), (x(value), base + 5), "axis")
        drawing.text((x(value), base + 19), lowest if place == 0 and lowest is not None else label, "middle", "tick")
    drawing.line((x.start, base), (x.end, base), "axis")
    drawing.axis_title((x.start + x.end) / 2, axis)
