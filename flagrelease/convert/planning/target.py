"""`Target`: one release asked for, as `DTYPE:LAYOUT`, and what it makes of a source tensor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from flagrelease.convert.codecs.repack import REPACK_TILE
from flagrelease.errors import UsageError
from flagrelease.formats.formats import FP4
from flagrelease.model.v4.inventory import Split
from flagrelease.model.v4.stored import StoredWeight
from flagrelease.records.manifest import Dtype, OGroups, TargetRecord
from flagrelease.source.source import Source

_TARGET = re.compile(r"(bf16|fp8|native):(hf|mp([1-9][0-9]{0,5}))")


class Action(Enum):
    """What happens to a tensor on its way into a release."""

    COPY = "copied bit by bit, a scale with its weight"
    DECODE = "decoded to BF16; the scale is used up"
    REPACK = "FP4 with a scale per 32 to FP8 with a scale per 128 x 128"


@dataclass(frozen=True, slots=True)
class Target:
    """A release: numbers (`dtype`) and cut (`mp`, None for the hf layout). `o_groups` matters where mp > o_groups."""

    dtype: Dtype
    mp: int | None
    o_groups: OGroups = "shared"

    @property
    def folder(self) -> str:
        """Name of the release's folder, `DTYPE-LAYOUT`."""
        return f"{self.dtype}-{self.layout}"

    @property
    def layout(self) -> str:
        """`hf` or `mpN`."""
        return "hf" if self.mp is None else f"mp{self.mp}"

    def __str__(self) -> str:
        """As it is written on the command line."""
        return f"{self.dtype}:{self.layout}"

    def action(self, tensor: StoredWeight) -> Action:
        """What this release makes of `tensor`.

        DeepSeek's and FlagOS' inference code load `wo_a` as BF16 from an mp checkpoint whatever the rest is.
        """
        if tensor.format is None:
            return Action.COPY
        if self.dtype == "bf16" or (self.mp is not None and tensor.spec.split is Split.O_GROUP_ROWS):
            return Action.DECODE
        if self.dtype == "fp8" and tensor.format is FP4:
            return Action.REPACK
        return Action.COPY

    def record(self, o_groups: OGroups | None) -> TargetRecord:
        """The manifest's record; `o_groups` is None where the layout does not use it."""
        return TargetRecord(dtype=self.dtype, layout="hf" if self.mp is None else "mp", mp=self.mp, o_groups=o_groups)


def parse_target(text: str, o_groups: OGroups = "shared") -> Target:
    """Read `DTYPE:LAYOUT`.

    Raises:
        UsageError: it is not one.
    """
    match = _TARGET.fullmatch(text)
    if match is None:
        raise UsageError(f"target {text!r} is not DTYPE:LAYOUT with bf16, fp8 or native and hf or mpN, as in bf16:mp8")
    dtype: Dtype = match[1]  # type: ignore[assignment]  # one of the three by the pattern
    return Target(dtype, int(match[3]) if match[3] else None, o_groups)


def require_possible(target: Target, source: Source) -> None:
    """Refuse a target that this source cannot become.

    Raises:
        UsageError: quantised numbers asked of a BF16 source, or FP8 blocks that the config does not describe.
    """
    if target.dtype == "bf16":
        return
    if all(t.format is None for t in source.tensors):
        raise UsageError(f"target {target}: {source.folder} holds no quantised tensor; from it only bf16 can be made")
    block = source.config.block_size
    if target.dtype == "fp8" and source.expert_format is FP4 and block != REPACK_TILE:
        raise UsageError(
            f"target {target}: FP4 is repacked in blocks of {list(REPACK_TILE)}, "
            f"weight_block_size is {block and list(block)}"
        )
