"""The matrix: a row for each release of a model, a column for each chip, and what is known of each pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flagrelease.chips.table import load_chips
from flagrelease.site.states import MEANINGS, State


@dataclass(frozen=True, slots=True)
class Cell:
    """One release on one chip. Links are pages of the site, from its root; None where there is none.

    Attributes:
        stacks: the serving stacks that the recipe makes it for, `` for none in particular.
        changed: the last night changed something of it.
    """

    state: State
    detail: str = ""
    stacks: tuple[str, ...] = ()
    report: str | None = None
    card: str | None = None
    published: bool = False
    weights_proved: bool = False
    changed: bool = False


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """One release. `page` is None if there is no release, only what a night says of it."""

    name: str
    format: str
    layout: str
    size: str
    page: str | None
    cells: Mapping[str, Cell]


@dataclass(frozen=True, slots=True)
class Matrix:
    """One model: its chips in the order of the chip table, and its releases by name."""

    model: str
    chips: tuple[str, ...]
    rows: tuple[MatrixRow, ...]

    def cell(self, row: MatrixRow, chip: str) -> Cell:
        """The cell, also where nobody means the release for the chip."""
        return row.cells.get(chip, Cell("not-meant"))

    def counts(self) -> list[tuple[State, int]]:
        """State -> number of cells, in the order of `MEANINGS`, without those that are not meant."""
        states = [cell.state for row in self.rows for cell in row.cells.values()]
        return [(state, states.count(state)) for state in MEANINGS if state in states and state != "not-meant"]


def make_matrix(model: str, rows: Iterable[MatrixRow]) -> Matrix:
    """Collect the rows of a model; a chip has a column if any release is meant for it."""
    kept = tuple(sorted(rows, key=lambda row: row.name))
    named = {chip for row in kept for chip in row.cells}
    return Matrix(model, chip_order(named), kept)


def chip_order(chips: Iterable[str]) -> tuple[str, ...]:
    """The chips in the order of the chip table, those that it does not have at the end."""
    known: Sequence[str] = list(load_chips())
    return tuple(sorted(chips, key=lambda chip: (known.index(chip) if chip in known else len(known), chip)))
