"""What the page of a comparison shows: the lists of `flagrelease diff` as tables."""

from __future__ import annotations

from dataclasses import dataclass

from flagrelease.diff.difference import DocumentDifference, ReleaseDifference, ValueDifference
from flagrelease.diff.kinds import tensor_kinds
from flagrelease.diff.words import document_lines, drafts, file_change, loss_change, sides, size_change
from flagrelease.page.panel import Table

_MOST = 200  # rows of a table; `flagrelease diff --json` has all


@dataclass(frozen=True, slots=True)
class DifferenceSection:
    """A part of the page; `left_out` rows are not on it."""

    heading: str
    table: Table
    left_out: int


def overview(found: ReleaseDifference) -> list[tuple[str, str]]:
    """Names and values at the top."""
    return [
        ("Tensor files", size_change(found.before.tensor_bytes, found.after.tensor_bytes)),
        ("All files", size_change(found.before.bytes, found.after.bytes)),
        ("Draft stages", drafts(found)),
        ("Tensors that are the same", f"{found.tensors_same:,}"),
        ("Tensors of the source that are the same", f"{found.source_tensors.same:,}"),
    ]


def sections(found: ReleaseDifference) -> list[DifferenceSection]:
    """The tables that have a row, in the order of the terminal's text."""
    tensors = Table((">tensors", "kind", "what", "first of them"))
    for kind in tensor_kinds(found.tensors):
        tensors.rows.append((f"{len(kind.names):,}", kind.name, kind.said, kind.names[0]))
    renamed = Table(("before", "after"), [(one.before, one.after) for one in found.renamed])
    tables = [("Tensors", tensors), ("Tensors under another name", renamed)]
    tables += [(one.path, _document(one)) for one in found.documents]
    for heading, chosen in (("Tokenizer files", True), ("Other files", False)):
        files = [one for one in found.files if (one.role == "tokenizer") == chosen]
        tables.append((heading, Table(("file", "what"), [(one.path, file_change(one)) for one in files])))
    source = found.source_tensors
    kinds = (("changed", source.changed), ("added", source.added), ("removed", source.removed))
    stored = Table((">tensors", "what", "first of them"))
    stored.rows.extend((f"{len(names):,}", what, names[0]) for what, names in kinds if names)
    losses = Table(("weight", "before", "after"), [(one.name, *loss_change(one)) for one in found.losses])
    tables += [
        ("Recipe", _values(found.recipe)),
        ("What it was made of and how", _values(found.facts)),
        ("Files of the source", _values(found.source_files)),
        ("Tensors of the source", stored),
        ("Elements of all weights", _values(found.elements)),
        ("Elements rounded or lost", _values(found.inexact)),
        ("Losses", losses),
    ]
    return [
        DifferenceSection(heading, Table(table.columns, table.rows[:_MOST]), max(0, len(table.rows) - _MOST))
        for heading, table in tables
        if table.rows
    ]


def _document(found: DocumentDifference) -> Table:
    if not found.keys:
        return Table(("its keys are not known",), [(found.unknown or "",)])
    return Table(("key", "before", "after"), list(document_lines(found)))


def _values(differences: tuple[ValueDifference, ...]) -> Table:
    return Table(("key", "before", "after"), [(one.key or "the whole", *sides(one)) for one in differences])
