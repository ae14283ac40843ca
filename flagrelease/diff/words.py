"""How a comparison is put into words: the same for a terminal and for a page."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import JsonValue

from flagrelease.console import human_bytes, printable
from flagrelease.diff.difference import (
    DocumentDifference,
    FileDifference,
    LossDifference,
    ReleaseDifference,
    ValueDifference,
)

_LONGEST = 160  # letters of a value; --json has the whole


def value(one: JsonValue) -> str:
    """A JSON value in one line, cut where it is long."""
    text = printable(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text):,} letters)"


def sides(one: ValueDifference) -> tuple[str, str]:
    """The value before and after, `absent` where there is none."""
    return (
        "absent" if one.what == "added" else value(one.before),
        "absent" if one.what == "removed" else value(one.after),
    )


def size_change(before: int, after: int) -> str:
    """`14.5 MB to 18.7 MB (+4.28 MB)`, or `14.5 MB, the same`."""
    if before == after:
        return f"{human_bytes(before)}, the same"
    sign = "+" if after > before else "-"
    return f"{human_bytes(before)} to {human_bytes(after)} ({sign}{human_bytes(abs(after - before))})"


def summary(found: ReleaseDifference) -> str:
    """One sentence for the top."""
    if found.same_manifest:
        return "The same release: the manifests are equal, byte for byte."
    every = found.tensors_same + len(found.tensors) + len(found.renamed)
    parts = [f"{len(found.tensors):,} of {every:,} tensors differ" if found.tensors else "No tensor differs"]
    if found.renamed:
        parts.append(f"{len(found.renamed):,} have another name")
    parts.append(f"{len(found.files):,} of {found.files_same + len(found.files):,} files differ")
    only_records = not (found.tensors or found.renamed or found.files)
    return ", ".join(parts) + ("; what the manifests say of how they were made does." if only_records else ".")


def drafts(found: ReleaseDifference) -> str:
    """What became of the draft stages."""

    def held(kept: str, stages: int) -> str:
        word = "none" if not stages else "1 stage" if stages == 1 else f"{stages} stages"
        return f"{word} ({kept})"

    before = held(found.before.drafts, found.before.draft_stages)
    after = held(found.after.drafts, found.after.draft_stages)
    moved = sum(one.name.startswith("mtp.") for one in found.tensors)
    which = f", {moved:,} of their tensors differ" if moved else ""
    return f"{before}, the same{which}" if before == after else f"{before} to {after}{which}"


def document_lines(found: DocumentDifference) -> Iterator[tuple[str, str, str]]:
    """(key, before, after) of each key; one line with the reason where keys are not known."""
    if not found.keys:
        yield "", found.unknown or "", ""
    for one in found.keys:
        yield printable(one.key), *sides(one)


def file_change(found: FileDifference) -> str:
    """What became of a file."""
    if found.before is None:
        assert found.after is not None
        return f"added, {human_bytes(found.after.size)}"
    if found.after is None:
        return f"removed, {human_bytes(found.before.size)}"
    return f"other bytes, {size_change(found.before.size, found.after.size)}"


def loss_change(found: LossDifference) -> tuple[str, str]:
    """What a weight lost before and after."""

    def said(loss: object) -> str:
        return "nothing" if loss is None else str(loss)

    before, after = (
        None
        if one is None
        else f"{one.elements - one.exact_elements:,} of {one.elements:,} elements, largest {one.largest_error:.2e}, "
        f"RMS {one.rms_error:.2e}"
        for one in (found.before, found.after)
    )
    return said(before), said(after)
