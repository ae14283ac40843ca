"""`WeightProof`: the expectations for one weight of a release, and the source tensors they are computed from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flagrelease.errors import VerificationError
from flagrelease.formats.formats import FP4, FP8, INT8, MXFP8, Format
from flagrelease.formats.releases import RELEASE_FORMATS
from flagrelease.model.stored import StoredWeight
from flagrelease.model.tensors import Storage
from flagrelease.records.manifest import MANIFEST_NAME, ElementCounts, LossRecord, Manifest
from flagrelease.verify.by_row import RowCodes, RowScales, ZeroOffsets
from flagrelease.verify.encoder import SCALE_RULES, RowRule
from flagrelease.verify.expectations import Copied, CopiedScale, Decoded, Expectation, HashedTensor
from flagrelease.verify.expected import ExpectedWeight
from flagrelease.verify.gather import GatheredTensor, whole
from flagrelease.verify.origin import Origin
from flagrelease.verify.repacks import GroupCodes, GroupScales, Repacked, RepackedScale, WidenedScale
from flagrelease.verify.tables import DecodedTable


@dataclass(frozen=True, slots=True)
class WeightProof:
    """What must hold for one weight: an expectation for each tensor of `ExpectedWeight.forms`, in that order."""

    weight: ExpectedWeight
    expectations: tuple[Expectation, ...]
    sources: tuple[HashedTensor, ...]

    def misfit(self, tensors: list[GatheredTensor]) -> str | None:
        """Why the release's tensors cannot be compared at all, or None."""
        pairs = zip(self.expectations, tensors, strict=True)
        return next((problem for one, tensor in pairs if (problem := one.misfit(tensor)) is not None), None)

    def elements(self) -> ElementCounts:
        """How the weight's elements were converted. Call this after all rows have been read."""
        count, first = math.prod(self.weight.spec.shape), self.expectations[0]
        if isinstance(first, Decoded | DecodedTable):
            return ElementCounts(exact=count - first.rounded, rounded=first.rounded)
        if isinstance(first, Repacked):
            return ElementCounts(repacked=count - first.lost, lost=first.lost)
        if isinstance(first, RowCodes):
            lost = int(first.inexact.sum())
            return ElementCounts(repacked=count - lost, lost=lost)
        return ElementCounts(repacked=count) if isinstance(first, GroupCodes) else ElementCounts(copied=count)

    def loss(self) -> LossRecord | None:
        """What scales by row cost the weight; None if nothing. Known once all rows were asked for."""
        first = self.expectations[0]
        return first.loss() if isinstance(first, RowCodes) else None


def row_rule(manifest: Manifest, fmt: Format) -> RowRule:
    """How rows are stored in `fmt`, by what the manifest records of the recipe.

    Raises:
        VerificationError: it records no rule.
    """
    options, release = manifest.options, RELEASE_FORMATS[manifest.target.dtype]
    option, usual = ("int8_scale", "best") if fmt is INT8 else ("channel_scale", "power-of-two")
    scale = options.get(option, usual)
    if scale not in SCALE_RULES[fmt]:
        raise VerificationError(f"{MANIFEST_NAME}: options.{option} is {scale!r}, not {', '.join(SCALE_RULES[fmt])}")
    return RowRule(fmt, scale, release.bf16_scales)


def prepare(weight: ExpectedWeight, source: Origin, manifest: Manifest) -> WeightProof:
    """Open a weight in the source and decide what the release must hold.

    Raises:
        CheckpointError: FP4 is to be repacked, and the source's config does not give the tile.
        VerificationError: the manifest records no rule for scales by row.
    """
    stored = source.stored(weight)
    codes = HashedTensor(whole(stored.weight, source.reading))
    if stored.scale is None or stored.format is None:
        further = [HashedTensor(whole(stored.weight, source.reading)) for _ in weight.copies]
        sources = (codes, *further)
        return WeightProof(weight, tuple(Copied(one) for one in sources), sources)
    scale = HashedTensor(whole(stored.scale, source.reading))
    expectations = _expectations(weight, stored, stored.format, codes, scale, source, manifest)
    return WeightProof(weight, expectations, (codes, scale))


def _expectations(
    weight: ExpectedWeight,
    stored: StoredWeight,
    fmt: Format,
    codes: HashedTensor,
    scale: HashedTensor,
    source: Origin,
    manifest: Manifest,
) -> tuple[Expectation, ...]:
    to = weight.stored
    if weight.spec.storage is Storage.TABLE:
        return (DecodedTable(codes, scale),) if to is None else (Copied(codes), CopiedScale(scale))
    if to is None:
        return (Decoded(codes, scale, fmt, stored.block),)
    if to is MXFP8:
        scales = GroupScales(scale, fmt, stored.block, weight.spec.shape[-1])
        return (GroupCodes(codes) if fmt is FP4 else Copied(codes), scales)
    if isinstance(to, Format) and to.by_row:
        rows = RowCodes(codes, scale, fmt, stored.block, weight.spec.shape, row_rule(manifest, to))
        return (rows, RowScales(rows)) if weight.offset is None else (rows, RowScales(rows), ZeroOffsets())
    assert weight.scale is not None, "what is not decoded has a scale"
    wide = "F8_E8M0" not in weight.scale.dtypes
    if to is FP8 and fmt is FP4:
        tiles = RepackedScale(scale, source.block, wide)
        return (Repacked(codes, tiles, source.block), tiles)
    widen = wide and scale.tensor.dtype == "F8_E8M0"
    return (Copied(codes), WidenedScale(scale) if widen else CopiedScale(scale))
