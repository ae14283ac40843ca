"""`Drawing`: an SVG picture inside the page, with a description for readers who cannot see it.

Colours are CSS classes that the page defines, so that one drawing serves light, dark and paper. Everything that
is not a number goes through `markupsafe`, so no name can become markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from markupsafe import Markup

Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]
WIDE, NARROW = 760.0, 320.0  # of a drawing on a screen or paper, and on a telephone
_THIN, _BROAD = frozenset("ijlftrI.,:;|!'()[]/ ·"), frozenset("mwMW%@—→←≤≥")


def is_narrow(width: float) -> bool:
    """Whether a drawing of this width is for a telephone: names then stand above what they name, not beside it."""
    return width < (WIDE + NARROW) / 2


def text_width(text: str, size: float = 12) -> float:
    """How wide a text may become, in user units: an estimate on the safe side, since the reader's font is not known."""
    return size * sum(0.38 if c in _THIN else 0.98 if c in _BROAD else 0.68 if c.isupper() else 0.62 for c in text)


def wrap(text: str, width: float, size: float = 12) -> list[str]:
    """Break a text between words into lines of at most `width`; a word that is longer has a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


class Drawing:
    """Draw, then take `markup`. Lengths are user units; text is 13 units high."""

    def __init__(self, ident: str, width: float, height: float, title: str, description: str) -> None:
        """`ident` must be unique in the page, where a narrow drawing may stand beside a wide one of the same name."""
        self.width, self.height = width, height
        ident += "-narrow" if is_narrow(width) else ""
        self._head = Markup(
            '<svg role="img" viewBox="0 0 {} {}" aria-labelledby="{}-t {}-d" xmlns="http://www.w3.org/2000/svg">'
            '<title id="{}-t">{}</title><desc id="{}-d">{}</desc>'
        ).format(_number(width), _number(height), ident, ident, ident, title, ident, description)
        self._parts: list[Markup] = []

    def line(self, start: Point, end: Point, style: str) -> None:
        """A straight line."""
        self._add('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>', style, *start, *end)

    def rect(self, corner: Point, width: float, height: float, style: str, tip: str | None = None) -> None:
        """A rectangle from its upper left corner; `tip` is shown under a mouse."""
        shape = '<rect class="{}" x="{}" y="{}" width="{}" height="{}"'
        if tip is None:
            self._add(shape + "/>", style, *corner, width, height)
        else:
            self._add(shape + "><title>{}</title></rect>", style, *corner, width, height, tip)

    def circle(self, centre: Point, radius: float, style: str) -> None:
        """A circle."""
        self._add('<circle class="{}" cx="{}" cy="{}" r="{}"/>', style, *centre, radius)

    def polygon(self, points: Sequence[Point], style: str) -> None:
        """A closed shape."""
        self._add('<polygon class="{}" points="{}"/>', style, _points(points))

    def polyline(self, points: Sequence[Point], style: str) -> None:
        """A line through points."""
        self._add('<polyline class="{}" points="{}"/>', style, _points(points))

    def text(self, at: Point, words: str, anchor: Anchor = "start", style: str = "label") -> None:
        """One line of text; `at` is on its base line."""
        self._add('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>', style, *at, anchor, words)

    def axis_title(self, middle: float, words: str) -> None:
        """The title of a horizontal axis along the lower edge, below `middle` as far as the drawing is wide enough."""
        half = text_width(words) / 2
        centre = min(max(middle, half), self.width - half) if 2 * half < self.width else self.width / 2
        self.text((centre, self.height - 6), words, "middle", "tick")

    def markup(self) -> Markup:
        """The `svg` element."""
        return self._head + Markup("\n").join(self._parts) + Markup("</svg>")

    def _add(self, shape: str, *values: str | float) -> None:
        shown = [value if isinstance(value, str) else _number(value) for value in values]
        self._parts.append(Markup(shape).format(*shown))


def _number(value: float) -> str:
    """Format with at most two decimals, so that every machine writes the same bytes."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
