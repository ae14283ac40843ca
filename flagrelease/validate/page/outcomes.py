"""Shows the power of the test: how often it would pass, fail or not decide a port that is truly worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from flagrelease.page.svg import Drawing, is_narrow

_LEFT, _RIGHT, _ROW, _TOP, _BOTTOM = 150, 20, 30, 6, 26
_NAME = 18  # height of a name above its bar
_LEAST, _LABEL = 0.5, 38  # widths: what is narrower is not drawn, or not labelled


@dataclass(frozen=True, slots=True)
class OutcomePoint:
    """A true drop in points, with the probabilities of the three verdicts (they add up to 1)."""

    drop: float
    passes: float
    fails: float
    cannot_tell: float


def outcome_bars(ident: str, rows: Sequence[OutcomePoint], description: str, *, width: float) -> Markup:
    """Draw a stacked bar for each true drop; parts that are wide enough are labelled with their share."""
    narrow = is_narrow(width)
    above = _NAME if narrow else 0
    step, start = _ROW + above, _RIGHT if narrow else _LEFT
    height = _TOP + step * len(rows) + _BOTTOM
    drawing = Drawing(ident, width, height, "What the test says of a port that is truly worse", description)
    reach = width - start - _RIGHT
    for number, row in enumerate(rows):
        y = _TOP + step * number + above
        name = f"{row.drop:.2f} points worse"
        if narrow:
            drawing.text((start, y - 2), name, style="tick")
        else:
            drawing.text((start - 12, y + 17), name, "end", "tick")
        left = float(start)
        for style, share in (("pass", row.passes), ("cannot-tell", row.cannot_tell), ("fail", row.fails)):
            if share * reach < _LEAST:
                left += share * reach
                continue
            drawing.rect((left, y + 3), share * reach, _ROW - 8, f"wash v-{style}")
            if share * reach > _LABEL:
                drawing.text((left + share * reach / 2, y + 18), f"{share:.0%}", "middle", f"on v-{style}")
            left += share * reach
    for share in (0.0, 0.5, 1.0):
        drawing.text((start + share * reach, height - 6), f"{share:.0%}", "middle", "tick")
    return drawing.markup()
