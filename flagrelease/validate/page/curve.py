"""Plots the error behind each layer: rounding makes it grow smoothly, a bug shows as a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from flagrelease.page.scale import LinearScale, Log
from flagrelease.page.svg import Anchor, Drawing

_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 280, 60, 18, 30, 46


@dataclass(frozen=True, slots=True)
class Line:
    """A value for each layer, at least 0, or None where there is none; drawn in the class `style`."""

    name: str
    style: str
    values: tuple[float | None, ...]


def layer_curve(
    ident: str,
    lines: Sequence[Line],
    *,
    title: str,
    description: str,
    axis: str,
    limit: float | None = None,
    steps: Sequence[int] = (),
    width: float,
) -> Markup:
    """Draw lines over the layers on a logarithmic axis with 0 at its bottom. `steps` are marked, None leaves a gap.

    Args:
        lines: all of one length, with at least one layer.
    """
    drawing = Drawing(ident, width, _HEIGHT, title, description)
    drawn = [value for line in lines for value in line.values] + ([] if limit is None else [limit])
    values = [value for value in drawn if value is not None and value > 0] or [1.0]
    x = LinearScale(0, max(len(lines[0].values) - 1, 1), _LEFT, width - _RIGHT)
    y = Log(min(values) / 1.6, max(values) * 1.6, _HEIGHT - _BOTTOM, _TOP)
    _axes(drawing, x, y, axis)
    for layer in steps:
        drawing.rect((x(layer) - 9, _TOP), 18, y.start - _TOP, "flagged")
        drawing.text((x(layer), _TOP - 8), f"step at layer {layer}", _side(x(layer), width), "tick strong")
    if limit is not None:
        drawing.line((x.start, y(limit)), (x.end, y(limit)), "limit")
        drawing.text((x.end - 4, y(limit) - 6), f"limit {limit:g}", "end", "tick")
    for line in lines:
        for run in _runs(line.values):
            points = [(x(layer), y(value)) for layer, value in run]
            drawing.polyline(points, f"curve {line.style}")
            for (layer, _), point in zip(run, points, strict=True):
                drawing.circle(point, 5 if layer in steps else 3, f"fill {line.style}")
    return drawing.markup()


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Split a line into stretches of (layer, value) without a gap."""
    runs: list[list[tuple[int, float]]] = [[]]
    for layer, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((layer, value))
    return [run for run in runs if run]


def _side(place: float, width: float) -> Anchor:
    return "start" if place < 80 else "end" if place > width - 80 else "middle"


def _axes(drawing: Drawing, x: LinearScale, y: Log, axis: str) -> None:
    base = y.start
    for value, label in y.ticks():
        drawing.line((x.start, y(value)), (x.end, y(value)), "grid")
        drawing.text((x.start - 8, y(value) + 4), label, "end", "tick")
    for value, label in x.roomy_ticks(10):
        if value == int(value):
            drawing.line((x(value), base), (x(value), base + 5), "axis")
            drawing.text((x(value), base + 19), label.partition(".")[0], "middle", "tick")
    drawing.line((x.start, base), (x.end, base), "axis")
    drawing.axis_title((x.start + x.end) / 2, axis)
