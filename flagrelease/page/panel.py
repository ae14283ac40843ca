"""`Panel`: a part of a stage's section, with a heading, a picture, the picture in words, and a table."""

from __future__ import annotations

from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text. A column whose name starts with `>` holds numbers and is aligned right."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Panel:
    """A part of a section.

    Attributes:
        words: what the picture shows, for readers who cannot see it; never empty.
        folded: the table starts closed, because it is long or repeats the picture (on paper it is open).
        legend: (style, words) for each colour in the picture.
    """

    heading: str
    words: str
    picture: Markup | None = None
    table: Table | None = None
    folded: bool = True
    legend: tuple[tuple[str, str], ...] = ()
