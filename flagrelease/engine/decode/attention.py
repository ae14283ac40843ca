"""Attention of one layer for one token a row: the same mathematics as `engine.attention`, in fewer launches.

Legend: B rows, H hidden, NH heads, HD head_dim, G o-groups, S parts of a product.
"""

from __future__ import annotations

from torch import Tensor

from flagrelease.engine.attention import Attention
from flagrelease.engine.cache import OVERLAP_RATIO, LayerCache, Pending
from flagrelease.engine.compressor import Compressor
from flagrelease.engine.decode.step import DecodeStep
from flagrelease.engine.indexer import Indexer
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.kernels.reference.decoding import Rounding
from flagrelease.engine.linear import Rounded, project_parts, project_rounded
from flagrelease.engine.rope import RopeTable


def attend(ops: Operators, attn: Attention, x: Rounded, step: DecodeStep, cache: LayerCache, rope: RopeTable) -> Tensor:
    """x [B, H] -> FP32 parts [S, B, H] of the output; extends the cache by the step's tokens."""
    entries = step.entries(attn.ratio)
    latents = ops.latents(
        project_parts(ops, x, attn.latents), attn.q_norm, attn.kv_norm, attn.eps, rope.cos, rope.sin, step.positions,
        cache.kv, entries, attn.wq_b.takes_codes, attn.quantise_kv,
    )  # fmt: skip
    qr = Rounded(*latents)
    (q,) = project_rounded(ops, qr, attn.wq_b)
    chosen = None
    if attn.side is not None:
        chosen = _compress(ops, attn, ops.linear_parts(x.plain, attn.side), qr, step, cache, rope)
    reached = min(entries, step.reach // attn.ratio) if attn.ratio else 0
    o = ops.decode_attention(
        q.view(len(q), -1, attn.head_dim), cache.kv, attn.sink, chosen, step.positions, rope.cos, rope.sin, entries,
        attn.window, attn.ratio, reached, attn.eps,
    )  # fmt: skip
    return project_parts(ops, _project_groups(ops, attn, o), attn.wo_b)


def _project_groups(ops: Operators, attn: Attention, o: Tensor) -> Rounded:
    """o [B, NH, HD] through wo_a, group by group, as wo_b takes it: [B, G * OR]."""
    if attn.wo_a_scale is None:
        return Rounded.of(ops, attn.project_groups(ops, o, o.dtype).flatten(1), attn.wo_b)
    by_group = o.reshape(len(o), attn.wo_a.shape[0], attn.wo_a.shape[2])
    parts = ops.fp8_grouped_linear_parts(by_group, attn.wo_a, attn.wo_a_scale)
    return Rounded(*ops.round_parts(parts, o.dtype, attn.wo_b.takes_codes))


def _compress(
    ops: Operators, attn: Attention, side: Tensor, qr: Rounded, step: DecodeStep, cache: LayerCache, rope: RopeTable
) -> Tensor | None:
    """Feed both compressors from `side` [S, B, ..]; let the indexer choose."""
    assert attn.compressor is not None
    assert cache.pending is not None
    rounding: Rounding = "fp8" if attn.quantise_kv else "none"
    side = _feed(ops, attn.compressor, side, step, cache.pending, cache.kv, rope, rounding)
    if attn.indexer is None:
        return None
    assert cache.index_k is not None
    assert cache.index_pending is not None
    rounding = "hadamard_fp4" if attn.indexer.quantise else "hadamard"
    side = _feed(ops, attn.indexer.compressor, side, step, cache.index_pending, cache.index_k, rope, rounding)
    return _choose(ops, attn.indexer, side, qr, step, cache.index_k, rope)


def _feed(
    ops: Operators, compressor: Compressor, side: Tensor, step: DecodeStep, pending: Pending, entries: Tensor,
    rope: RopeTable, rounding: Rounding,
) -> Tensor:  # fmt: skip
    """Give a compressor its columns of `side`; returns the others."""
    width = compressor.ape.shape[1]
    ops.compress_token(
        side[..., :width], side[..., width : 2 * width], compressor.ape, compressor.norm, compressor.eps, rope.cos,
        rope.sin, step.positions, pending.kv, pending.score, entries, rounding,
    )  # fmt: skip
    return side[..., 2 * width :]


def _choose(
    ops: Operators, indexer: Indexer, weights: Tensor, qr: Rounded, step: DecodeStep, keys: Tensor, rope: RopeTable
) -> Tensor:
    (q,) = project_rounded(ops, qr, indexer.wq_b)
    q = q.view(len(q), -1, indexer.head_dim)
    q, weights = ops.index_queries(q, weights, rope.cos, rope.sin, step.positions, indexer.quantise)
    reached = min(keys.shape[1] - 1, step.reach // OVERLAP_RATIO)
    scores = ops.indexer_scores(q[:, None], keys[:, :reached], weights[:, None])
    return ops.topk_visible(scores, step.visible[:, None], indexer.topk)[:, 0]
