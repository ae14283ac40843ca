"""`OutputFile`: which slices a tensor file of a release holds, in which order, and its header.

Inside a file tensors stand by alignment (8, 4, 2, 1 bytes, so that every tensor is aligned), then as in the source.
Codes of one byte keep their scales beside them, also where these are F32; then tensors of an odd size, which would
shift a scale, stand at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from flagrelease.convert.planning.slices import Slice
from flagrelease.convert.planning.target import Target
from flagrelease.shard.header import join_header

# What an entry adds to a header beside its name, at most: dtype, two dimensions, two offsets and punctuation.
_ENTRY_BYTES = 120


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A tensor file of a release.

    Attributes:
        release: index into `Plan.releases`.
        header: its first bytes.
        size: exact, header included.
        slices: what follows the header, in this order.
        ahead: how many of `slices` have a wider alignment than most of the release, and so stand at the beginning.
        behind: how many stand at the end, because their size would shift scales.
        first, last: places in the source of the first and the last tensor that the file holds.
    """

    release: int
    name: str
    header: bytes = field(repr=False)
    size: int
    slices: tuple[Slice, ...] = field(repr=False)
    ahead: int
    behind: int
    first: int
    last: int


def plan_files(
    ranks: Sequence[Sequence[Slice]], target: Target, release: int, limit: int | None
) -> Iterator[OutputFile]:
    """The files of a release.

    Args:
        ranks: what each rank holds, in the order of the source.
        target: the release, which names the files.
        release: its index in the plan.
        limit: most bytes of a file; None: a rank is one file.
    """
    usual = 2 if target.dtype == "bf16" else 1
    for rank, slices in enumerate(ranks):
        groups = list(_pack(slices, limit))
        for number, group in enumerate(groups, start=1):
            ahead = sorted((one for one in group if one.alignment > usual), key=lambda one: -one.alignment)
            among, behind = _odd_ones_last([one for one in group if one.alignment <= usual])
            ordered = (*ahead, *among, *behind)
            header = join_header((one.entry, one.nbytes) for one in ordered)
            size = len(header) + sum(one.nbytes for one in ordered)
            name = _file_name(target, rank, number, len(groups))
            places = group[0].order, group[-1].order
            yield OutputFile(release, name, header, size, ordered, len(ahead), len(behind), *places)


def _odd_ones_last(slices: list[Slice]) -> tuple[list[Slice], list[Slice]]:
    """Split off the tensors whose size is no multiple of the widest element among `slices`, scales included."""
    widest = max((one.part.alignment for one in slices), default=1)
    odd = {one.order for one in slices if one.nbytes % widest}
    if widest == min((one.alignment for one in slices), default=1):
        odd = set()
    return [one for one in slices if one.order not in odd], [one for one in slices if one.order in odd]


def _pack(slices: Sequence[Slice], limit: int | None) -> Iterator[Sequence[Slice]]:
    """Split a sequence into files of at most `limit` bytes; a weight stays with its scale."""
    if limit is None:
        yield slices
        return
    current: list[Slice] = []
    size = _ENTRY_BYTES
    at = 0
    while at < len(slices):
        end = at + 1
        while end < len(slices) and slices[end].order == slices[at].order:
            end += 1
        cost = sum(one.nbytes + len(one.part.name) + _ENTRY_BYTES for one in slices[at:end])
        if current and size + cost > limit:
            yield current
            current, size = [], _ENTRY_BYTES
        current += slices[at:end]
        size += cost
        at = end
    yield current


def _file_name(target: Target, rank: int, number: int, count: int) -> str:
    if target.mp is None:
        return f"{target.release.file_stem}-{number:05d}-of-{count:05d}.safetensors"
    part = f"-part{number}" if count > 1 else ""
    return f"model{rank}-mp{target.mp}{part}.safetensors"
