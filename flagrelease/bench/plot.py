"""Line charts as SVG: a few series over a logarithmic x axis, one chart below the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 180, 40, 50  # margins; the legend is in the right one
_COLOURS = ("#1f5fa8", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490")


@dataclass(frozen=True, slots=True)
class PlotSeries:
    """Points by x, which are positive; y are not negative."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Axis labels name units."""

    title: str
    x: str
    y: str
    series: tuple[PlotSeries, ...]


def draw(charts: Sequence[Chart]) -> str:
    """One SVG document; series without points are left out."""
    height = _HEIGHT * len(charts)
    body = "".join(f'<g transform="translate(0 {_HEIGHT * n})">{_chart(chart)}</g>\n' for n, chart in enumerate(charts))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}</svg>\n'
    )


def _chart(chart: Chart) -> str:
    shown = [series for series in chart.series if series.points]
    xs = sorted({x for series in shown for x, _ in series.points}) or [1.0]
    top = _round_up(max((y for series in shown for _, y in series.points), default=1.0))
    low, high = math.log2(xs[0]), math.log2(xs[-1])

    def across(x: float) -> float:
        share = (math.log2(x) - low) / (high - low) if high > low else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _HEIGHT - _BOTTOM - y / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(_LEFT, 22, chart.title, weight="bold")]
    for n in range(5):
        y = top * n / 4
        parts.append(f'<path d="M{_LEFT} {down(y):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 8, down(y) + 4, f"{y:g}", anchor="end"))
    parts += [_text(across(x), _HEIGHT - _BOTTOM + 18, f"{x:g}", anchor="middle") for x in xs]
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, chart.x, anchor="middle"))
    parts.append(_text(_LEFT, 36, chart.y))
    for n, series in enumerate(shown):
        colour = _COLOURS[n % len(_COLOURS)]
        places = [(across(x), down(y)) for x, y in sorted(series.points)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(_text(_WIDTH - _RIGHT + 14, _TOP + 16 * (n + 1), series.name, fill=colour))
    return "\n".join(parts)


def _round_up(value: float) -> float:
    """To 1, 2, 4, 6 or 8 times a power of ten, so that a quarter of it is a short number."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(n * power for n in (1, 2, 4, 6, 8, 10) if value <= n * power * (1 + 1e-9))


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", fill: str = "#222") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{fill}"'
    return f"<text {place}>{escape(text)}</text>"
