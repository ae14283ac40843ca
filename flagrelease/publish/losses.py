"""What a card says of exactness: whether anything was lost, and by how much, for each kind of weight."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flagrelease.records.manifest import LossRecord, Manifest

_KINDS = {
    "copied": "kept bit for bit",
    "exact": "decoded to BF16 without rounding",
    "rounded": "decoded to BF16 with rounding",
    "repacked": "held exactly by another format",
    "lost": "that this format could not hold exactly",
}


def lossless(manifest: Manifest) -> bool:
    """Whether every element of every weight is what it was in the source."""
    return not (manifest.elements.rounded or manifest.elements.lost or manifest.inexact or manifest.losses)


def losses(manifest: Manifest) -> Iterator[str]:
    """Lines: what became of the elements, a verdict, and a table of the kinds of weights that lost something."""
    counts = manifest.elements.model_dump()
    total = sum(counts.values())
    held = ", ".join(f"{counts[kind]:,} {words}" for kind, words in _KINDS.items() if counts[kind])
    yield f"Elements of all weights: {held}."
    yield ""
    if lossless(manifest):
        yield "**Lossless**: every element of every weight has the value that it has in the source."
        return
    changed = counts["rounded"] + counts["lost"]
    share = f"{changed:,} of {total:,} elements ({changed / max(total, 1):.2%})"
    yield f"**Not lossless**: {share} are not what they are in the source."
    if not manifest.losses:
        return
    yield "The largest error is a share of the weight's largest value, the RMS error of the RMS of its values. A kind"
    yield "of weight that is not in the table lost nothing by its scales."
    yield ""
    yield "| weights | rows that are exact | elements that are exact | largest error | largest RMS error |"
    yield "|---|---|---|---|---|"
    for kind, records in by_kind(manifest.losses).items():
        rows, exact_rows = sum(one.rows for one in records), sum(one.exact_rows for one in records)
        elements, exact = sum(one.elements for one in records), sum(one.exact_elements for one in records)
        largest, rms = max(one.largest_error for one in records), max(one.rms_error for one in records)
        yield (
            f"| {len(records):,} x `{kind}` | {_share(exact_rows, rows)} | {_share(exact, elements)} "
            f"| {largest:.2e} | {rms:.2e} |"
        )
    yield ""
    yield "Each weight of its own is in `manifest.json` (`losses`)."


def by_kind(losses: dict[str, LossRecord]) -> dict[str, list[LossRecord]]:
    """The records of weights whose names differ only in numbers, which become `*`, in the order of the names."""
    kinds: dict[str, list[LossRecord]] = {}
    for name in sorted(losses):
        kinds.setdefault(re.sub(r"\b\d+\b", "*", name), []).append(losses[name])
    return kinds


def _share(part: int, whole: int) -> str:
    """A share that is not rounded up to all or down to nothing."""
    share = f"{part / whole:.2%}" if whole else "100.00%"
    if part != whole and share == "100.00%":
        share = "99.99%"
    return f"{part:,} of {whole:,} ({share})"
