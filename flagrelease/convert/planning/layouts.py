"""Layouts: how a release is cut into files. `hf` keeps tensors whole; `mpN` is DeepSeek's tensor-parallel checkpoint.

The rules of mpN are those of DeepSeek's inference/convert.py. For mp > o_groups there are two: `shared` is FlagOS' (the
mp / o_groups ranks of one o-group hold the same piece of wo_a and wo_b, gather their heads and compute the group
together), `split` holds nothing twice (inside an o-group wo_a is cut along its input by the ranks' own heads and wo_b
along its input by mp, so that the ranks reduce inside the group instead).
"""

from __future__ import annotations

from dataclasses import dataclass

from flagrelease.errors import UsageError
from flagrelease.model.config import FamilyConfig
from flagrelease.model.tensors import Split, TensorSpec
from flagrelease.records.manifest import OGroups


@dataclass(frozen=True, slots=True)
class Region:
    """Half-open ranges of a logical tensor [R, C] in elements; a vector of n is [n, 1]."""

    row0: int
    row1: int
    col0: int
    col1: int


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor's shape as (rows, columns): every stored tensor is a matrix, a vector or (in F4 headers) a matrix."""
    columns = 1
    for n in shape[1:]:
        columns *= n
    return (shape[0] if shape else 1), columns


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """mp ranks of one model. `o_groups` says how wo_a and wo_b are cut where mp > o_groups (None elsewhere)."""

    config: FamilyConfig
    mp: int
    o_groups: OGroups | None

    def owner(self, spec: TensorSpec) -> int:
        """The rank that holds a tensor of an expert, whole."""
        assert spec.expert is not None
        return spec.expert // (spec.experts // self.mp)

    def regions(self, spec: TensorSpec) -> list[tuple[int, Region]]:
        """(rank, what it holds) of a tensor, ranks ascending."""
        rows, cols = matrix_shape(spec.shape)
        ranks = range(self.mp)
        if spec.split is Split.NONE:
            return [(rank, Region(0, rows, 0, cols)) for rank in ranks]
        if spec.split is Split.EXPERT:
            return [(self.owner(spec), Region(0, rows, 0, cols))]
        if spec.split is Split.ROWS:
            return [(rank, Region(*_part(rows, self.mp, rank), 0, cols)) for rank in ranks]
        if spec.split is Split.PADDED_ROWS:
            step = -(-rows // self.mp)
            return [(rank, Region(rank * step, (rank + 1) * step, 0, cols)) for rank in ranks]
        if self.mp <= self.config.o_groups:
            group_parts, parts, split = self.mp, self.mp, False
        else:
            group_parts, parts, split = self.config.o_groups, self.mp // self.config.o_groups, self.o_groups == "split"
        share = self.mp // group_parts  # ranks that belong to one part of the o-groups
        if spec.split is Split.O_GROUP_ROWS:
            inner = [(0, cols)] * share if not split else [_part(cols, parts, i) for i in range(share)]
            return [(r, Region(*_part(rows, group_parts, r // share), *inner[r % share])) for r in ranks]
        if split:
            return [(r, Region(0, rows, *_part(cols, self.mp, r))) for r in ranks]
        return [(r, Region(0, rows, *_part(cols, group_parts, r // share))) for r in ranks]


def tensor_parallel(config: FamilyConfig, mp: int, o_groups: OGroups) -> TensorParallel:
    """The mpN layout of this model.

    Raises:
        UsageError: mp does not divide what it must; the message has the numbers and the values of mp that do.
    """
    problem = divisibility_problem(config, mp)
    if problem:
        valid = [n for n in range(1, config.num_attention_heads + 1) if divisibility_problem(config, n) is None]
        raise UsageError(f"mp{mp}: {problem}; this model can be cut into mp {', '.join(map(str, valid))}")
    return TensorParallel(config, mp, o_groups if mp > config.o_groups else None)


def divisibility_problem(config: FamilyConfig, mp: int) -> str | None:
    """Why this model cannot be cut into mp ranks, with the numbers; None if it can."""
    for what, count in (
        *config.expert_counts.items(),
        ("vocab_size", config.vocab_size),
        ("num_attention_heads", config.num_attention_heads),
        ("index_n_heads", config.index_n_heads),
    ):
        if mp < 1 or count % mp:
            return f"{what} {count} is not divisible by {mp}"
    if mp > config.most_ranks:
        return f"inference code of this model has at most {config.most_ranks} ranks"
    if max(mp, config.o_groups) % min(mp, config.o_groups):
        return f"neither of mp {mp} and o_groups {config.o_groups} divides the other"
    if config.o_groups * config.o_lora_rank % mp:
        return f"o_groups * o_lora_rank {config.o_groups * config.o_lora_rank} is not divisible by {mp}"
    return None


def _part(length: int, parts: int, index: int) -> tuple[int, int]:
    step = length // parts
    return index * step, (index + 1) * step
