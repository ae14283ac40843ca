"""`TensorSpec`: one tensor of a model as the inventory of its family has it: shape, storage and sharding.

Shapes are logical: two FP4 codes that share a byte count as two elements. A quantised weight `X.weight` has a sibling,
its scale, which is not listed: it follows from the format (`flagrelease.formats`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagrelease.formats.formats import FP4, FP8, FP8_CHANNEL, FP8_GROUP, INT8, MXFP8, StorageRule


class Storage(Enum):
    """How a tensor may be stored: DeepSeek publishes linears as FP8 and experts as FP4 or FP8; both may be plain.

    Releases for serving stacks hold both with a scale for each row, as INT8 or FP8, or with one for 32 elements.
    """

    LINEAR = StorageRule("fp8 with a block scale", "BF16", (FP8, INT8, FP8_CHANNEL, MXFP8))
    EXPERT = StorageRule(
        "fp4 with a scale per 32, or fp8 with a block scale", "BF16", (FP4, FP8, INT8, FP8_CHANNEL, MXFP8)
    )
    TABLE = StorageRule("fp8 with a scale per 32 elements of a row", "BF16", (FP8_GROUP,))
    BF16 = StorageRule("bf16", "BF16")
    F32 = StorageRule("f32", "F32")
    I64 = StorageRule("i64", "I64")


class Split(Enum):
    """How tensor parallelism cuts a tensor over mp ranks (DeepSeek's inference/convert.py; FlagOS' for o-groups)."""

    NONE = "every rank holds all of it"
    ROWS = "dimension 0, by mp"
    PADDED_ROWS = "dimension 0, by mp rounded up; the last ranks are filled up with rows of zeros whose scales are 1"
    EXPERT = "whole, on the one rank that owns the expert"
    O_GROUP_ROWS = "wo_a: dimension 0, by o-group"
    O_GROUP_COLUMNS = "wo_b: dimension 1, by o-group"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One logical tensor. Where `split` is EXPERT: the global id of the expert, and how many experts its block has."""

    name: str
    shape: tuple[int, ...]
    storage: Storage
    split: Split = Split.NONE
    expert: int | None = None
    experts: int = 0
