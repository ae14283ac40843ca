"""The comparison of two releases as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from flagrelease import console
from flagrelease.console import printable
from flagrelease.diff.difference import ReleaseDifference, ValueDifference
from flagrelease.diff.kinds import tensor_kinds
from flagrelease.diff.words import (
    document_lines,
    drafts,
    file_change,
    loss_change,
    sides,
    size_change,
    summary,
)

_SHOWN = 20  # lines of a list; --json has all of it


def difference_text(found: ReleaseDifference) -> Iterator[str]:
    """Lines for a terminal; lists are cut at 20, and say by how much."""
    for sign, one in (("-", found.before), ("+", found.after)):
        model = printable(one.model or "no model named")
        yield f"{sign} {printable(one.name)}: {model} {one.target}, manifest {one.manifest_sha256[:12]}"
    yield ""
    yield summary(found)
    yield f"tensor files: {size_change(found.before.tensor_bytes, found.after.tensor_bytes)}"
    yield f"all files: {size_change(found.before.bytes, found.after.bytes)}"
    yield f"draft stages: {drafts(found)}"
    for heading, lines in _sections(found):
        kept = list(lines)
        if kept:
            yield ""
            yield heading
            yield from (f"  {line}" for line in kept[:_SHOWN])
            if len(kept) > _SHOWN:
                yield f"  and {len(kept) - _SHOWN:,} more; --json has them"
    yield ""
    yield "Not said by manifests:"
    yield from (f"  {sentence}" for sentence in found.unsaid)


def show_difference(found: ReleaseDifference) -> None:
    """Print the text."""
    for line in difference_text(found):
        console.out().print(line, markup=False)


def _sections(found: ReleaseDifference) -> Iterator[tuple[str, Iterable[str]]]:
    kinds = tensor_kinds(found.tensors)
    yield (
        f"Tensors ({len(found.tensors):,} differ, {found.tensors_same:,} are the same)",
        (f"{len(kind.names):,} x {printable(kind.name)}: {kind.said}" for kind in kinds),
    )
    yield (
        "Tensors under another name",
        (f"{printable(one.before)} is now {printable(one.after)}" for one in found.renamed),
    )
    for one in found.documents:
        lines = document_lines(one)
        yield (
            f"{printable(one.path)}",
            (f"{key}: {old} -> {new}" if key or new else old for key, old, new in lines),
        )
    yield "Tokenizer files", (f"{printable(one.path)}: {file_change(one)}" for one in found.of_role("tokenizer"))
    others = [one for one in found.files if one.role != "tokenizer"]
    yield "Other files", (f"{printable(one.path)}: {file_change(one)}" for one in others)
    yield "Recipe", _values(found.recipe)
    yield "What it was made of and how", _values(found.facts)
    yield "Files of the source", _values(found.source_files)
    source = found.source_tensors
    yield (
        f"Tensors of the source ({source.same:,} are the same)",
        [
            f"{len(names):,} {what}: {', '.join(map(printable, names[:3]))}{', ...' if len(names) > 3 else ''}"
            for what, names in (("changed", source.changed), ("added", source.added), ("removed", source.removed))
            if names
        ],
    )
    yield "Elements of all weights", _values(found.elements)
    yield "Elements rounded or lost", _values(found.inexact)
    yield "Losses", (f"{printable(one.name)}: {' -> '.join(loss_change(one))}" for one in found.losses)


def _values(differences: Sequence[ValueDifference]) -> Iterator[str]:
    for one in differences:
        yield f"{printable(one.key) or 'whole'}: {' -> '.join(sides(one))}"
