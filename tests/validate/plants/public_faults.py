"""The public faults of ports of autumn 2026, planted in our engine: each changes a model, not the package.

swiglu      the path of the routed experts has no SwiGLU limit: Hygon's INT8 experts, HumanEval 126 of 164 for 160
stale       captured steps replay the entries that the indexer chose when they were recorded: Moore Threads' graphs,
            GSM8K 0.96 to 0.585, with weights that were right
border      a chunk of a prompt begins without what the compressors remember and without the index keys before it:
            Ascend's chunked prefill, retrieval 10 of 10 to 0 of 10

The fourth, scores of truncated runs and of subsets, is in the answers and not in the engine.
"""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.v4.attention import Attention
from flagrelease.engine.v4.cache import OVERLAP_RATIO, LayerCache, Pending
from flagrelease.engine.v4.indexer import Indexer
from flagrelease.engine.v4.model import Model
from flagrelease.engine.v4.step import Step


def without_swiglu_limit(model: Model) -> Model:
    """Routed experts whose SwiGLU is not clamped; the shared expert's is."""
    ops = copy.copy(model.ops)

    def moe_experts(x: Tensor, ids: Tensor, weights: Tensor, experts: Any, limit: float, *rest: Any) -> Tensor:
        return Operators.moe_experts(x, ids, weights, experts, torch.inf, *rest)

    ops.moe_experts = moe_experts  # type: ignore[method-assign]
    return replace(model, ops=ops)


class _StaleIndexer(Indexer):
    """Recorded at the first step of one token that it sees, for each number of rows, as a graph would be."""

    def choose(self, ops: Operators, side: Tensor, qr: Any, step: Step, cache: LayerCache, *rest: Any) -> Tensor:
        chosen = super().choose(ops, side, qr, step, cache, *rest)
        rows, tokens, _ = chosen.shape
        if tokens > 1:
            return chosen
        recorded = _RECORDED.setdefault((id(self.wq_b), rows), chosen.clone())
        visible = step.windows[OVERLAP_RATIO].visible[..., None]
        return torch.where(recorded < visible, recorded, -1)


_RECORDED: dict[tuple[int, int], Tensor] = {}  # a frozen dataclass has no place for it


class _ForgetfulAttention(Attention):
    """Begins every piece of a prompt but the first with empty compressors and no index keys."""

    def forward(self, ops: Operators, x: Any, step: Step, cache: LayerCache, *rest: Any) -> Tensor:
        rows, tokens = step.positions.shape
        if self.side is not None and tokens > 1:
            for n in range(rows):
                if int(step.positions[n, 0]):
                    _forget(cache, int(step.cache_row[n, 0]))
        return super().forward(ops, x, step, cache, *rest)


def _forget(cache: LayerCache, row: int) -> None:
    for pending in (cache.pending, cache.index_pending):
        if isinstance(pending, Pending):
            pending.kv[row].zero_()
            pending.score[row].fill_(-torch.inf)
    if cache.index_k is not None:
        cache.index_k[row].zero_()


def with_stale_indexer(model: Model) -> Model:
    """Steps of one token a row choose what the first such step chose."""
    _RECORDED.clear()

    def spoiled(attention: Attention) -> Attention:
        indexer = attention.indexer
        return attention if indexer is None else replace(attention, indexer=_as(_StaleIndexer, indexer))

    return _with_attention(model, spoiled)


def without_state_at_borders(model: Model) -> Model:
    """Pieces of a prompt behind the first begin with nothing remembered."""
    return _with_attention(model, lambda attention: _as(_ForgetfulAttention, attention))


def _with_attention(model: Model, spoil: Any) -> Model:
    return replace(model, blocks=tuple(replace(block, attn=spoil(block.attn)) for block in model.blocks))


def _as(kind: Any, value: Any) -> Any:
    return kind(**{field.name: getattr(value, field.name) for field in fields(value)})
