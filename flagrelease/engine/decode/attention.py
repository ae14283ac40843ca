"""Attention of one layer for a few tokens a row: the same mathematics as `v4.attention`, in fewer launches.

Every kernel takes all tokens of all rows at once: all keys are written before any query reads them, and each query sees
its own range. Legend: B rows, W tokens a row, H hidden, NH heads, HD head_dim, G o-groups, S parts of a product.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flagrelease.engine.decode.step import DecodeStep
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.kernels.reference.decoding import Rounding
from flagrelease.engine.kernels.weights import FP8_BLOCK
from flagrelease.engine.linear import project_parts, project_rounded
from flagrelease.engine.parallel import Groups
from flagrelease.engine.schemes import Rounded
from flagrelease.engine.v4.attention import Attention
from flagrelease.engine.v4.cache import OVERLAP_RATIO, LayerCache, Pending
from flagrelease.engine.v4.compressor import Compressor
from flagrelease.engine.v4.rope import RopeTable


def attend(
    ops: Operators, attn: Attention, x: Rounded, step: DecodeStep, cache: LayerCache, rope: RopeTable, groups: Groups
) -> Tensor:
    """x [W * B, H] -> FP32 parts [S, W * B, H] of this rank's output; extends the cache by the step's tokens."""
    entries = step.entries(attn.ratio)
    side = None if attn.side is None else step.branches.beside(_compress, ops, attn, x.plain, step, cache, rope)
    latents = ops.latents(
        project_parts(ops, x, attn.latents), attn.q_norm, attn.kv_norm, attn.eps, rope.cos, rope.sin, step.positions,
        cache.kv, entries, attn.queries.scheme.fused, attn.quantise_kv,
    )  # fmt: skip
    (queries,) = project_rounded(ops, attn.queries.take(ops, *latents), attn.queries)
    q, index_q = queries.tensor_split([len(attn.wq_b.weight)], 1)
    q = q.view(len(q), -1, attn.head_dim)
    chosen = _choose(ops, attn, index_q, side, step, cache, rope)
    reached = min(entries, step.reach // attn.ratio) if attn.ratio else 0
    # As the product with stored codes takes it fastest, where ranks have whole o-groups and exchange no heads.
    scaled = attn.wo_a_scale is not None and groups.o_mode is None and q.dtype == torch.bfloat16
    o, scales = ops.decode_attention(
        q, cache.kv, attn.sink, chosen, step.positions, rope.cos, rope.sin, entries, attn.window + step.ahead,
        attn.ratio, reached, attn.eps, scaled, attn.stepwise_q_norm, step.newest,
    )  # fmt: skip
    return project_parts(ops, _project_groups(ops, attn, groups.gather_heads(o), scales, q.dtype, groups), attn.wo_b)


def _project_groups(
    ops: Operators, attn: Attention, o: Tensor, scales: Tensor | None, dtype: torch.dtype, groups: Groups
) -> Rounded:
    """o [W * B, NH, HD] through wo_a, group by group, as wo_b takes it: [W * B, G * OR] in `dtype`.

    `scales` [W * B, NH, HD/128] are those of `scaled_fp16`, if o is. Sums over ranks are FP32.
    """
    if attn.wo_a_scale is None or groups.o_mode == "split":
        partial = torch.float32 if groups.o_mode == "split" else dtype
        y = groups.sum_o_lora(attn.project_groups(ops, o, partial)).to(dtype)
        return attn.wo_b.round(ops, y.flatten(1))
    G, _, K = attn.wo_a.shape
    by_group = None if scales is None else scales.reshape(len(o), G, K // FP8_BLOCK)
    parts = ops.fp8_grouped_linear_parts(o.reshape(len(o), G, K), by_group, attn.wo_a, attn.wo_a_scale)
    return attn.wo_b.take(ops, *ops.round_parts(parts, dtype, attn.wo_b.scheme.fused))


def _compress(
    ops: Operators, attn: Attention, x: Tensor, step: DecodeStep, cache: LayerCache, rope: RopeTable
) -> Tensor | None:  # fmt: skip
    """Feed the compressors x [W * B, H]; returns the weights of index heads, FP32 [W * B, IH], where there are any."""
    assert attn.side is not None
    assert attn.compressor is not None
    assert cache.pending is not None
    rounding: Rounding = "fp8" if attn.quantise_kv else "none"
    side = ops.linear_parts(x, attn.side)
    rest = _feed(ops, attn.compressor, side, step, cache.pending, cache.kv, rope, rounding)
    if attn.indexer is None:
        return None
    assert cache.index_k is not None
    assert cache.index_pending is not None
    rounding = "hadamard_fp4" if attn.indexer.quantise else "hadamard"
    rest = _feed(ops, attn.indexer.compressor, rest, step, cache.index_pending, cache.index_k, rope, rounding)
    return ops.round_parts(rest, torch.float32, False)[0]


def _feed(
    ops: Operators, compressor: Compressor, side: Tensor, step: DecodeStep, pending: Pending, entries: Tensor,
    rope: RopeTable, rounding: Rounding,
) -> Tensor:  # fmt: skip
    """Give a compressor its columns of `side` [S, W * B, ..]; returns the others."""
    width = compressor.ape.shape[1]
    ops.compress_token(
        side[..., :width], side[..., width : 2 * width], compressor.ape, compressor.norm, compressor.eps, rope.cos,
        rope.sin, step.positions, pending.kv, pending.score, entries, rounding,
    )  # fmt: skip
    return side[..., 2 * width :]


def _choose(
    ops: Operators, attn: Attention, q: Tensor, side: Callable[[], Tensor | None] | None, step: DecodeStep,
    cache: LayerCache, rope: RopeTable,
) -> Tensor | None:  # fmt: skip
    """The entries that the index queries q [W * B, IH * ID] choose, int32 [W * B, k], if there is an indexer.

    `side` gives the weights of its heads, when the step's entries are there.
    """
    if attn.indexer is None:
        if side is not None:
            side()
        return None
    q = q.view(len(q), -1, attn.indexer.head_dim)
    q = ops.index_queries(q, rope.cos, rope.sin, step.positions, attn.indexer.quantise)
    assert side is not None
    weights, keys = side(), cache.index_k
    assert weights is not None
    assert keys is not None
    keys = keys[:, : min(keys.shape[1] - 1, step.reach // OVERLAP_RATIO)]
    return ops.choose_entries(q, keys, weights, step.visible, attn.indexer.topk)
