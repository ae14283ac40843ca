"""`WeightProof`: the expectations for one weight of a release, and the source tensors they are computed from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flagrelease.formats.formats import FP4
from flagrelease.records.manifest import ElementCounts
from flagrelease.verify.expectations import (
    Copied,
    CopiedScale,
    Decoded,
    Expectation,
    HashedTensor,
    Repacked,
    RepackedScale,
)
from flagrelease.verify.expected import ExpectedWeight, Fate
from flagrelease.verify.gather import GatheredTensor, whole
from flagrelease.verify.origin import Origin


@dataclass(frozen=True, slots=True)
class WeightProof:
    """What must hold for one weight: an expectation for each tensor of `ExpectedWeight.forms`, in that order."""

    weight: ExpectedWeight
    fate: Fate
    expectations: tuple[Expectation, ...]
    sources: tuple[HashedTensor, ...]

    def misfit(self, tensors: list[GatheredTensor]) -> str | None:
        """Why the release's tensors cannot be compared at all, or None. A copy must keep its dtype and shape."""
        if self.fate is Fate.DECODE:
            return None
        if self.fate is Fate.REPACK:
            scale = tensors[1]
            return None if scale.dtype == "F8_E8M0" else f"has {scale.dtype} scales, repacked FP4 has F8_E8M0"
        for tensor, source in zip(tensors, (hashed.tensor for hashed in self.sources), strict=True):
            # an mp release spells packed FP4 as F4, whatever the source had
            same = tensor.dtype == source.dtype or (tensor.dtype == "F4" and source.dtype in FP4.weight_dtypes)
            if not same or (tensor.rows, tensor.row_bytes) != (source.rows, source.row_bytes):
                return (
                    f"is {tensor.dtype} {list(tensor.shape)}, a copy of {source.dtype} {list(source.shape)} is not that"
                )
        return None

    def elements(self) -> ElementCounts:
        """How the weight's elements were converted. Call this after all rows have been read."""
        count, first = math.prod(self.weight.spec.shape), self.expectations[0]
        if isinstance(first, Decoded):
            return ElementCounts(exact=count - first.rounded, rounded=first.rounded)
        if isinstance(first, Repacked):
            return ElementCounts(repacked=count - first.lost, lost=first.lost)
        return ElementCounts(copied=count)


def prepare(weight: ExpectedWeight, source: Origin) -> WeightProof:
    """Open a weight in the source and decide what the release must hold.

    Raises:
        CheckpointError: FP4 is to be repacked, and the source's config does not give the tile.
    """
    stored = source.stored(weight)
    codes = HashedTensor(whole(stored.weight))
    fate = weight.fate(stored.format)
    if stored.scale is None or stored.format is None:
        return WeightProof(weight, fate, (Copied(codes),), (codes,))
    scale = HashedTensor(whole(stored.scale))
    if fate is Fate.COPY:
        return WeightProof(weight, fate, (Copied(codes), CopiedScale(scale)), (codes, scale))
    if fate is Fate.DECODE:
        return WeightProof(weight, fate, (Decoded(codes, scale, stored.format, stored.block),), (codes, scale))
    tiles = RepackedScale(scale, source.block)
    return WeightProof(weight, fate, (Repacked(codes, tiles, source.block), tiles), (codes, scale))
