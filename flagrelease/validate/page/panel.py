"""What a stage's section is made of: a heading, a picture, the picture in words, a table."""

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
        words: what the picture shows, for those who do not see it; always there.
        folded: the table is long or only repeats the picture: it opens on demand (and is open on paper).
        legend: (style, words) of what the picture tells apart by colour.
    """

    heading: str
    words: str
    picture: Markup | None = None
    table: Table | None = None
    folded: bool = True
    legend: tuple[tuple[str, str], ...] = ()
