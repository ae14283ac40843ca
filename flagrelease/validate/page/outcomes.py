"""Shows the power of the test: how often it would pass, fail or not decide a port that is truly worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from flagrelease.page.svg import Drawing

_LEFT, _RIGHT, _ROW, _TOP, _BOTTOM = 150, 16, 30, 6, 26


@dataclass(frozen=True, slots=True)
class OutcomePoint:
    """A true drop in points, with the probabilities of the three verdicts (they add up to 1)."""

    drop: float
    passes: float
    fails: float
    cannot_tell: float


def outcome_bars(ident: str, rows: Sequence[OutcomePoint], description: str, width: float = 760) -> Markup:
    """Draw a stacked bar for each true drop; parts that are wide enough are labelled with their share."""
    height = _TOP + _ROW * len(rows) + _BOTTOM
    drawing = Drawing(ident, width, height, "What the test says of a port that is truly worse", description)
    reach = width - _LEFT - _RIGHT
    for number, row in enumerate(rows):
        y = _TOP + _ROW * number
        drawing.text((_LEFT - 12, y + 17), f"{row.drop:.2f} points worse", "end", "tick")
        left = float(_LEFT)
        for style, share in (("pass", row.passes), ("cannot-tell", row.cannot_tell), ("fail", row.fails)):
            drawing.rect((left, y + 3), share * reach, _ROW - 8, f"wash v-{style}")
            if share > 0.06:
                drawing.text((left + share * reach / 2, y + 18), f"{share:.0%}", "middle", f"on v-{style}")
            left += share * reach
    for share in (0.0, 0.5, 1.0):
        drawing.text((_LEFT + share * reach, height - 6), f"{share:.0%}", "middle", "tick")
    return drawing.markup()
