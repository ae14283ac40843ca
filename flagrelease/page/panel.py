"""`Panel`: a part of a stage's section: heading, picture, the picture in words, list of checks, table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from markupsafe import Markup

from flagrelease.page.signs import SIGNS
from flagrelease.page.svg import NARROW, WIDE


class Plot(Protocol):
    """Draws one picture in a given width."""

    def __call__(self, *, width: float) -> Markup:
        """Make the `svg` element; its ids follow from its name and its width."""
        ...


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture drawn twice, so that nothing is cut or too small to read: the page shows the drawing that fits."""

    wide: Markup
    narrow: Markup

    @classmethod
    def of(cls, plot: Plot) -> Picture:
        """Draw it in both widths. `plot` is usually a `functools.partial` that has everything but the width."""
        return cls(plot(width=WIDE), plot(width=NARROW))


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text. A column whose name starts with `>` holds numbers and is aligned right."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CheckItem:
    """A line of a list of checks: what was looked at, what was found, and the line to change if it is wrong.

    Attributes:
        verdict: one of `SIGNS`.
    """

    name: str
    verdict: str
    detail: str
    remedy: str = ""

    @property
    def sign(self) -> str:
        """The sign of its verdict."""
        return SIGNS[self.verdict]


@dataclass(frozen=True, slots=True)
class Panel:
    """A part of a section.

    Attributes:
        words: what the picture shows, for readers who cannot see it; never empty.
        folded: the table starts closed, because it is long or repeats the picture (on paper it is open).
        legend: (style, words) for each colour in the picture.
        checks: a list with a sign for each verdict, such as that of the pre-flight.
    """

    heading: str
    words: str
    picture: Picture | None = None
    table: Table | None = None
    folded: bool = True
    legend: tuple[tuple[str, str], ...] = ()
    checks: tuple[CheckItem, ...] = ()
