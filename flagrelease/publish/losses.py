"""What a card says of exactness: whether anything was lost, and by how much, for each kind of weight."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flagrelease.publish.claims import Advice, Claim, Columns, Line, Row, Status
from flagrelease.publish.claims import manifest as in_manifest
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


def losses(manifest: Manifest, status: Status) -> Iterator[Line]:
    """Lines: what became of the elements, a verdict, and a table of the kinds of weights that lost something.

    `status`: of the counts. The converter made them; they are proved if a second decoder came to the same.
    """
    counts = manifest.elements.model_dump()
    total = sum(counts.values())
    held = ", ".join(f"{counts[kind]:,} {words}" for kind, words in _KINDS.items() if counts[kind])
    counted = in_manifest("/elements")
    yield Claim(status, counted, f"Elements of all weights: {held or 'none'}.", bullet=False)
    yield ""
    if lossless(manifest):
        said = "**Lossless**: every element of every weight has the value that it has in the source."
        yield Claim(status, counted, said, bullet=False)
        return
    changed = counts["rounded"] + counts["lost"]
    share = f"{changed:,} of {total:,} elements ({changed / max(total, 1):.2%})"
    yield Claim(status, counted, f"**Not lossless**: {share} are not what they are in the source.", bullet=False)
    if not manifest.losses:
        return
    yield Advice(
        "The largest error is a share of the weight's largest value, the RMS error of the RMS of its values. A kind\n"
        "of weight that is not in the table lost nothing by its scales."
    )
    yield ""
    yield Columns(("weights", "rows that are exact", "elements that are exact", "largest error", "largest RMS error"))
    for kind, records in by_kind(manifest.losses).items():
        rows, exact_rows = sum(one.rows for one in records), sum(one.exact_rows for one in records)
        elements, exact = sum(one.elements for one in records), sum(one.exact_elements for one in records)
        largest, rms = max(one.largest_error for one in records), max(one.rms_error for one in records)
        cells = f"{len(records):,} x `{kind}`", _share(exact_rows, rows), _share(exact, elements)
        yield Row(status, in_manifest("/losses"), (*cells, f"{largest:.2e}", f"{rms:.2e}"))
    yield ""
    yield Advice("Each weight of its own is in `manifest.json` (`losses`).")


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
