"""`Slice`: the part of a stored tensor that one rank holds, with the entry that describes it in a file's header.

V4-Pro has 145,000 tensors, but only some sixty kinds of them: those of a kind have the same shapes, dtypes and rule of
sharding. What depends on the kind alone is worked out once a kind, which is what makes a plan take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flagrelease.convert.planning.layouts import Region, TensorParallel, matrix_shape
from flagrelease.convert.planning.parts import Cut, Part, cut, require_whole_blocks
from flagrelease.convert.planning.target import Target
from flagrelease.model.tensors import Split, TensorSpec
from flagrelease.shard.header import header_entry
from flagrelease.source.source import Source


class Slice(NamedTuple):
    """A rectangle of one part.

    Attributes:
        order: place of the source tensor in the source.
        part: the whole stored tensor that it belongs to.
        cut: the rectangle, in bytes.
        nbytes: how many bytes that is.
        alignment: bytes of the tensor's narrowest element, weight or scale: both go to the same place in a file.
        entry: what the header says of it, for `join_header`.
    """

    order: int
    part: Part
    cut: Cut
    nbytes: int
    alignment: int
    entry: str


class _Held(NamedTuple):
    """What the ranks of `ranks` hold of every tensor of a kind: for each part its cut, the bytes and the shape."""

    ranks: list[int]
    cuts: list[tuple[Cut, int, tuple[int, ...]]]


def slices_by_rank(
    source: Source, target: Target, layout: TensorParallel | None, parts: Sequence[tuple[Part, ...]]
) -> list[list[Slice]]:
    """For each rank (the hf layout has one) what it holds, in the order of the source.

    Args:
        source: the checkpoint.
        target: the release, named in errors.
        layout: how the release is cut; None for the hf layout.
        parts: for each tensor of the source what is stored of it, nothing of one that the release leaves out.

    Raises:
        UsageError: the layout would cut a block.
    """
    ranks: list[list[Slice]] = [[] for _ in range(layout.mp if layout else 1)]
    kinds: dict[object, list[_Held]] = {}
    for order, (tensor, own) in enumerate(zip(source.tensors, parts, strict=True)):
        if not own:
            continue
        spec = tensor.spec
        key = (spec.split, spec.shape, *((part.dtype, part.shape, part.block) for part in own))
        held = kinds.get(key)
        if held is None:
            held = kinds[key] = _held(spec, own, layout, target)
        alignment = min(part.alignment for part in own)
        for ranks_of_cut, cuts in held:
            slices = [
                Slice(order, part, piece, nbytes, alignment, header_entry(part.name, part.dtype, shape))
                for part, (piece, nbytes, shape) in zip(own, cuts, strict=True)
            ]
            if layout is not None and spec.split is Split.EXPERT:
                ranks[layout.owner(spec)] += slices
            else:
                for rank in ranks_of_cut:
                    ranks[rank] += slices
    return ranks


def _held(spec: TensorSpec, parts: tuple[Part, ...], layout: TensorParallel | None, target: Target) -> list[_Held]:
    rows, columns = matrix_shape(spec.shape)
    regions = layout.regions(spec) if layout else [(0, Region(0, rows, 0, columns))]
    ranks_of: dict[Region, list[int]] = {}
    for rank, region in regions:
        ranks_of.setdefault(region, []).append(rank)
    held = []
    for region, ranks in ranks_of.items():
        cuts = []
        for part in parts:
            require_whole_blocks(part, region, spec, target)
            piece = cut(part, region)
            cuts.append((piece, piece.nbytes, piece.shape(part)))
        held.append(_Held(ranks, cuts))
    return held
