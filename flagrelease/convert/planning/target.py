"""`Target`: one release asked for, as `FORMAT:LAYOUT`, and what it makes of a source tensor."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagrelease.errors import UsageError
from flagrelease.formats.formats import FP4, FP8, FP8_CHANNEL, INT8, MXFP8
from flagrelease.formats.releases import RELEASE_FORMATS, Kept, ReleaseFormat, parse_format_and_layout
from flagrelease.model.drafts import DRAFT_PREFIX
from flagrelease.model.families import family_of
from flagrelease.model.stored import StoredWeight
from flagrelease.model.tensors import Storage
from flagrelease.records.convert_spec import EngramTables
from flagrelease.records.manifest import Drafts, Dtype, OGroups, TargetRecord
from flagrelease.source.source import Source


class Action(Enum):
    """What happens to a tensor on its way into a release."""

    COPY = "copied bit by bit, a scale with its weight"
    DECODE = "decoded to BF16; the scale is used up"
    REPACK = "FP4 with a scale per 32 to FP8 with an E8M0 scale per tile"
    REPACK_F32 = "FP4 with a scale per 32 to FP8 with an F32 scale per tile"
    WIDEN = "FP8 codes copied, their E8M0 scales written as F32"
    INT8 = "INT8 with an F32 scale for each row"
    INT8_BF16 = "INT8 with a scale for each row that BF16 holds, written as F32"
    FP8_CHANNEL = "FP8 with an F32 scale for each row"
    MXFP8 = "FP8 with a scale exponent for each 32 elements"


@dataclass(frozen=True, slots=True)
class Target:
    """A release.

    Attributes:
        dtype: its format.
        mp: ranks that it is cut for; None for the hf layout.
        o_groups: how wo_a and wo_b are cut where mp > o_groups.
        drafts: whether it holds the draft stages (`mtp.*`: the preview's MTP, DSpark's three).
        engram: what a BF16 release makes of Engram tables.
    """

    dtype: Dtype
    mp: int | None
    o_groups: OGroups = "shared"
    drafts: Drafts = "keep"
    engram: EngramTables = "decode"

    @property
    def release(self) -> ReleaseFormat:
        """What the format stores."""
        return RELEASE_FORMATS[self.dtype]

    @property
    def folder(self) -> str:
        """Name of the release's folder, `FORMAT-LAYOUT`."""
        return f"{self.dtype}-{self.layout}"

    @property
    def layout(self) -> str:
        """`hf` or `mpN`."""
        return "hf" if self.mp is None else f"mp{self.mp}"

    def __str__(self) -> str:
        """As it is written on the command line."""
        return f"{self.dtype}:{self.layout}"

    def held(self, source: Source) -> Source:
        """`source`, as far as this release holds it."""
        return source if self.drafts == "keep" else source.without_drafts()

    def holds(self, tensor: StoredWeight) -> bool:
        """Whether this release holds `tensor` in any form."""
        return self.drafts == "keep" or not tensor.spec.name.startswith(DRAFT_PREFIX)

    def action(self, tensor: StoredWeight) -> Action:
        """What this release makes of `tensor`."""
        if tensor.format is None:
            return Action.COPY
        if tensor.spec.storage is Storage.TABLE:
            return Action.DECODE if self.dtype == "bf16" and self.engram == "decode" else Action.COPY
        expert = tensor.spec.storage is Storage.EXPERT
        wanted = self.release.stored(tensor.spec.name, expert=expert, mp=self.mp is not None)
        if wanted is None:
            return Action.DECODE
        if wanted is INT8:
            return Action.INT8_BF16 if self.release.bf16_scales else Action.INT8
        if wanted is FP8:
            wide = self.release.f32_scales and self.mp is None
            if tensor.format is FP4:
                return Action.REPACK_F32 if wide else Action.REPACK
            return Action.WIDEN if wide and tensor.scale and tensor.scale.dtype == "F8_E8M0" else Action.COPY
        return (
            Action.COPY if isinstance(wanted, Kept) else {FP8_CHANNEL: Action.FP8_CHANNEL, MXFP8: Action.MXFP8}[wanted]
        )

    def record(self, o_groups: OGroups | None) -> TargetRecord:
        """The manifest's record; `o_groups` is None where the layout does not use it."""
        return TargetRecord(
            dtype=self.dtype,
            layout="hf" if self.mp is None else "mp",
            mp=self.mp,
            o_groups=o_groups,
            drafts=self.drafts,
        )


def parse_target(text: str, o_groups: OGroups = "shared", drafts: Drafts = "keep") -> Target:
    """Read `FORMAT:LAYOUT`.

    Raises:
        UsageError: it is not one.
    """
    try:
        release, mp = parse_format_and_layout(text)
    except ValueError as error:
        raise UsageError(f"target {error}") from error
    return Target(release.name, mp, o_groups, drafts)


def require_possible(target: Target, source: Source) -> None:
    """Refuse a target that this source cannot become.

    Raises:
        UsageError: quantised numbers asked of a BF16 source, or FP8 blocks that the config does not describe.
    """
    family = family_of(source.config)
    if target.dtype not in family.formats:
        raise UsageError(
            f"target {target}: no stack is known that loads {family.title} in this format; it can be made "
            f"{', '.join(name for name in RELEASE_FORMATS if name in family.formats)}"
        )
    if target.dtype == "bf16":
        return
    if all(t.format is None for t in source.tensors):
        raise UsageError(f"target {target}: {source.root} holds no quantised tensor; from it only bf16 can be made")
    block = source.config.block_size
    if target.release.experts is FP8 and source.expert_format is FP4 and block != family.repack_tile:
        raise UsageError(
            f"target {target}: FP4 is repacked in blocks of {list(family.repack_tile)}, "
            f"weight_block_size is {block and list(block)}"
        )
