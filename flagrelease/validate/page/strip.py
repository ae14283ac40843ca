"""Item strip: a column for each question shows how often native and port answered it right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from flagrelease.page.svg import Drawing

_LEFT, _CELL, _GAP = 70, 26, 4
_LEVELS = 10  # shades; the style has a class for each


@dataclass(frozen=True, slots=True)
class StripItem:
    """One question: shares of right answers, 0 to 1."""

    name: str
    native: float
    port: float


def item_strip(ident: str, items: Sequence[StripItem], description: str, *, width: float) -> Markup:
    """Draw the columns, from the question that native answers best to the one it answers worst."""
    ordered = in_order(items)
    column = (width - _LEFT - 4) / len(ordered)
    drawing = Drawing(ident, width, 3 * _CELL + 2 * _GAP + 34, "Share of right answers to each question", description)
    for row, name in enumerate(("native", "release", "change")):
        drawing.text((_LEFT - 10, row * (_CELL + _GAP) + _CELL / 2 + 4), name, "end", "tick")
    inset = 0.5 if column > 5 else 0
    for number, item in enumerate(ordered):
        left = _LEFT + number * column
        tip = f"{item.name}: native {item.native:.0%}, release {item.port:.0%}"
        for row, share in enumerate((item.native, item.port)):
            corner = (left + inset, row * (_CELL + _GAP))
            drawing.rect(corner, column - 2 * inset, _CELL, f"share s{round(share * _LEVELS)}", tip)
        change = item.port - item.native
        corner = (left + inset, 2 * (_CELL + _GAP))
        drawing.rect(corner, column - 2 * inset, _CELL, _change_style(change), f"{tip}: {change:+.0%}")
    drawing.text((_LEFT, drawing.height - 8), "easiest for native", style="tick")
    drawing.text((width - 4, drawing.height - 8), "hardest", "end", "tick")
    return drawing.markup()


def in_order(items: Sequence[StripItem]) -> list[StripItem]:
    """Sort the questions as the strip shows them."""
    return sorted(items, key=lambda item: (-item.native, -item.port, item.name))


def _change_style(change: float) -> str:
    size = min(4, round(abs(change) * 8))
    return "change c0" if size == 0 else f"change {'up' if change > 0 else 'down'} c{size}"
