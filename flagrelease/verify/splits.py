"""Where each part of a tensor lies in an `mpN` release: the second table of DeepSeek's sharding rules.

Written from DeepSeek's `inference/convert.py` of V4 and V4.1 (which tensors are cut, and along what) and FlagOS'
o-group split for more ranks than o-groups. It is on purpose not `TensorSpec.split`: a wrong rule there must show here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum

from flagrelease.errors import VerificationError
from flagrelease.records.manifest import OGroups

_BLOCK = re.compile(r"(?:layers|mtp)\.\d+\.(.+)")
_EXPERT = re.compile(r"ffn\.experts\.(\d+)\.w[123]")


class SplitRule(Enum):
    """How one tensor is spread over ranks."""

    REPLICATED = "every rank holds all of it"
    ROWS = "dimension 0 in mp parts"
    FILLED = "dimension 0 in mp parts, rounded up: the last ranks hold more rows than there are"
    EXPERT = "whole, on the rank of the expert"
    WO_A = "dimension 0 in mp parts, or by o-group"
    WO_B = "dimension 1 in mp parts, or by o-group"


_TOP = {"embed": SplitRule.ROWS, "head": SplitRule.ROWS}
_IN_BLOCK = {
    "attn.wq_b": SplitRule.ROWS,
    "attn.attn_sink": SplitRule.ROWS,
    "attn.indexer.wq_b": SplitRule.ROWS,
    "attn.indexer.weights_proj": SplitRule.ROWS,
    "attn.wo_a": SplitRule.WO_A,
    "attn.wo_b": SplitRule.WO_B,
    "markov_head.markov_w1": SplitRule.ROWS,
    "markov_head.markov_w2": SplitRule.ROWS,
    "markov_head.embed": SplitRule.ROWS,
    "markov_head.head": SplitRule.ROWS,
    "engram.embed": SplitRule.FILLED,
}


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of a tensor seen as a matrix, in elements: rows [top, bottom), columns [left, right)."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True, slots=True)
class Ranks:
    """What the cuts depend on. `mode` says how wo_a and wo_b are spread where mp > o_groups.

    `drafters`: experts of a draft stage, if these are not as many as a layer's.
    """

    mp: int
    o_groups: int
    experts: int
    mode: OGroups | None
    drafters: int | None = None


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor's shape as a matrix: dimension 0 by the product of all others. A vector is one column."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def place(name: str, shape: tuple[int, ...], ranks: Ranks) -> dict[Box, tuple[int, ...]]:
    """The boxes that tensor `name` (weight or scale) of this logical shape is cut into, and the ranks that hold each.

    Raises:
        VerificationError: a dimension does not divide.
    """
    rows, columns = as_matrix(shape)
    mp, everyone = ranks.mp, tuple(range(ranks.mp))
    stem = re.sub(r"\.(weight|scale)$", "", name)
    cut, expert = _rule(stem)
    if cut is SplitRule.REPLICATED:
        return {Box(0, rows, 0, columns): everyone}
    if cut is SplitRule.EXPERT:
        experts = (ranks.drafters if name.startswith("mtp.") else None) or ranks.experts
        owner = expert // _divide(name, "experts", experts, mp)
        return {Box(0, rows, 0, columns): (owner,)}
    if cut is SplitRule.ROWS:
        return _grid(name, rows, columns, mp, 1, 1)
    if cut is SplitRule.FILLED:
        height = -(-rows // mp)
        return {Box(rank * height, (rank + 1) * height, 0, columns): (rank,) for rank in range(mp)}
    if mp <= ranks.o_groups:
        return _grid(name, rows, columns, mp, 1, 1) if cut is SplitRule.WO_A else _grid(name, rows, columns, 1, mp, 1)
    sharing = _divide(name, "ranks by o-groups", mp, ranks.o_groups)
    if ranks.mode == "shared":
        across = (ranks.o_groups, 1) if cut is SplitRule.WO_A else (1, ranks.o_groups)
        return _grid(name, rows, columns, *across, sharing)
    return _grid(name, rows, columns, *((ranks.o_groups, sharing) if cut is SplitRule.WO_A else (1, mp)), 1)


def _rule(stem: str) -> tuple[SplitRule, int]:
    inside = _BLOCK.fullmatch(stem)
    if inside is None:
        return _TOP.get(stem, SplitRule.REPLICATED), 0
    expert = _EXPERT.fullmatch(inside[1])
    if expert is not None:
        return SplitRule.EXPERT, int(expert[1])
    return _IN_BLOCK.get(inside[1], SplitRule.REPLICATED), 0


def _grid(name: str, rows: int, columns: int, down: int, across: int, copies: int) -> dict[Box, tuple[int, ...]]:
    """Cut into `down` x `across` equal boxes, in row-major order; each is held by `copies` consecutive ranks."""
    height = _divide(name, "dimension 0", rows, down)
    width = _divide(name, "dimension 1", columns, across)
    return {
        Box(i * height, (i + 1) * height, j * width, (j + 1) * width): tuple(
            range((i * across + j) * copies, (i * across + j + 1) * copies)
        )
        for i in range(down)
        for j in range(across)
    }


def _divide(name: str, what: str, size: int, parts: int) -> int:
    if size % parts:
        raise VerificationError(f"tensor {name!r}: {what}: {size} does not divide into {parts} parts")
    return size // parts
