"""How long the nights took, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from flagrelease.console import human_duration
from flagrelease.page.scale import LinearScale
from flagrelease.page.svg import Drawing

_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 70, 12, 12, 30, 190


@dataclass(frozen=True, slots=True)
class NightBar:
    """One night: its name, its seconds (None without an end) and the tone of its verdict."""

    name: str
    seconds: float | None
    tone: str


def duration_plot(ident: str, nights: Sequence[NightBar], words: str, width: float = 760) -> Markup:
    """A bar for each night, the first one at the left. `nights` must have one with an end."""
    drawing = Drawing(ident, width, _HEIGHT, "How long each night took", words)
    longest = max(night.seconds for night in nights if night.seconds is not None)
    base = _HEIGHT - _BOTTOM
    unit, word = (3600.0, "h") if longest > 7200 else (60.0, "min") if longest > 120 else (1.0, "s")
    y = LinearScale(0, max(longest / unit, 1e-3), base, _TOP)
    for value, label in y.ticks(4):
        drawing.line((_LEFT, y(value)), (width - _RIGHT, y(value)), "grid")
        drawing.text((_LEFT - 8, y(value) + 4), f"{label} {word}", "end", "tick")
    column = (width - _LEFT - _RIGHT) / len(nights)
    for number, night in enumerate(nights):
        if night.seconds is not None:
            size = min(column * 0.8, 40.0)
            corner = (_LEFT + (number + 0.5) * column - size / 2, y(night.seconds / unit))
            tip = f"{night.name}: {human_duration(night.seconds)}"
            drawing.rect(corner, size, max(base - corner[1], 1.0), f"wash v-{night.tone}", tip)
    drawing.line((_LEFT, base), (width - _RIGHT, base), "axis")
    drawing.text((_LEFT, _HEIGHT - 8), nights[0].name.partition(" ")[0], style="tick")
    drawing.text((width - _RIGHT, _HEIGHT - 8), nights[-1].name.partition(" ")[0], "end", "tick")
    return drawing.markup()
