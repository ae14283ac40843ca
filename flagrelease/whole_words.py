"""`WholeWords`: a table that breaks no word while there is room; rich alone narrows the widest column, words or not."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_BETWEEN = 2  # spaces between columns
_LONGEST = 20  # letters of a word that is kept whole: paths may be folded


class WholeWords(Table):
    """A table whose columns are narrowed down to their longest word before any word is broken."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Set the widths, then render as rich does."""
        self._share(options.max_width - _BETWEEN * (len(self.columns) - 1))
        yield from super().__rich_console__(console, options)

    def _share(self, room: int) -> None:
        cells = [[_plain(one) for one in (column.header, *column.cells)] for column in self.columns]
        whole = [max(cell_len(line) for text in texts for line in (text.splitlines() or [""])) for texts in cells]
        words = [max(cell_len(word) for text in texts for word in (text.split() or [""])) for texts in cells]
        words = [min(_LONGEST, word) for word in words]
        if sum(words) > room or sum(whole) <= room:  # rich does what can be done
            return
        for column, width in zip(self.columns, _shared(room, whole, words), strict=True):
            column.width = width


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain


def _shared(room: int, wanted: list[int], given: list[int]) -> list[int]:
    """`given` widths, made as wide as wanted while there is room: those that lack least come first."""
    widths, left = list(given), room - sum(given)
    for place in sorted(range(len(wanted)), key=lambda one: wanted[one] - given[one]):
        more = max(0, min(left, wanted[place] - widths[place]))
        widths[place] += more
        left -= more
    return widths
