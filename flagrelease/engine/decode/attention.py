"""Attention of one layer for a token or two a row: the same mathematics as `engine.attention`, in fewer launches.

Legend: B rows, W tokens a row, H hidden, NH heads, HD head_dim, G o-groups, S parts of a product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flagrelease.engine.decode.step import Apart, DecodeStep
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
    """x [W * B, H] -> FP32 parts [S, W * B, H] of this rank's output; extends the cache by the step's tokens.

    Products are of all tokens together: weights are read once. Caches take one token a row at a time.
    """
    entries, apart = step.entries(attn.ratio), step.apart()
    side = None if attn.side is None else step.branches.beside(_compress, ops, attn, x.plain, apart, cache, rope)
    parts = project_parts(ops, x, attn.latents)
    latents = [
        ops.latents(
            parts[:, rows], attn.q_norm, attn.kv_norm, attn.eps, rope.cos, rope.sin, each.positions, cache.kv, entries,
            attn.queries.scheme.fused, attn.quantise_kv,
        )
        for rows, each in apart
    ]  # fmt: skip
    qr = Rounded.stack([attn.queries.take(ops, *latent) for latent in latents])
    (queries,) = project_rounded(ops, qr, attn.queries)
    q, index_q = queries.tensor_split([len(attn.wq_b.weight)], 1)
    q = q.view(len(q), -1, attn.head_dim)
    chosen = _choose(ops, attn, index_q, side, step, cache, rope, groups)
    reached = min(entries, step.reach // attn.ratio) if attn.ratio else 0
    # As the product with stored codes takes it fastest, where ranks have whole o-groups and exchange no heads.
    scaled = attn.wo_a_scale is not None and groups.o_mode is None and q.dtype == torch.bfloat16
    outputs = [
        ops.decode_attention(
            q[rows], cache.kv, attn.sink, of_row, each.positions, rope.cos, rope.sin, entries,
            attn.window, attn.ratio, reached, attn.eps, scaled, attn.stepwise_q_norm,
        )
        for (rows, each), of_row in zip(apart, chosen, strict=True)
    ]  # fmt: skip
    o, scales = outputs[0]
    if step.width > 1:
        o = torch.cat([o for o, _ in outputs])
        scales = torch.cat([s for _, s in outputs if s is not None]) if scaled else None
    return project_parts(ops, _project_groups(ops, attn, groups.gather_heads(o), scales, q.dtype, groups), attn.wo_b)


def _project_groups(
    ops: Operators, attn: Attention, o: Tensor, scales: Tensor | None, dtype: torch.dtype, groups: Groups
) -> Rounded:
    """o [B, NH, HD] through wo_a, group by group, as wo_b takes it: [B, G * OR] in `dtype`.

    `scales` [B, NH, HD/128] are those of `scaled_fp16`, if o is. Sums over ranks are FP32.
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
    ops: Operators, attn: Attention, x: Tensor, apart: Apart, cache: LayerCache, rope: RopeTable
) -> Tensor | None:  # fmt: skip
    """Feed the compressors x [W * B, H]; returns the weights of index heads, FP32 [W * B, IH], where there are any."""
    assert attn.side is not None
    assert attn.compressor is not None
    assert cache.pending is not None
    rounding: Rounding = "fp8" if attn.quantise_kv else "none"
    side = ops.linear_parts(x, attn.side)
    rest = _feed(ops, attn.compressor, side, apart, cache.pending, cache.kv, rope, rounding)
    if attn.indexer is None:
        return None
    assert cache.index_k is not None
    assert cache.index_pending is not None
    rounding = "hadamard_fp4" if attn.indexer.quantise else "hadamard"
    rest = _feed(ops, attn.indexer.compressor, rest, apart, cache.index_pending, cache.index_k, rope, rounding)
    return ops.round_parts(rest, torch.float32, False)[0]


def _feed(
    ops: Operators, compressor: Compressor, side: Tensor, apart: Apart, pending: Pending, entries: Tensor,
    rope: RopeTable, rounding: Rounding,
) -> Tensor:  # fmt: skip
    """Give a compressor its columns of `side` [S, W * B, ..]; returns the others."""
    width = compressor.ape.shape[1]
    for rows, each in apart:
        ops.compress_token(
            side[:, rows, :width], side[:, rows, width : 2 * width], compressor.ape, compressor.norm, compressor.eps,
            rope.cos, rope.sin, each.positions, pending.kv, pending.score, entries, rounding,
        )  # fmt: skip
    return side[..., 2 * width :]


def _choose(
    ops: Operators, attn: Attention, q: Tensor, side: Callable[[], Tensor | None] | None, step: DecodeStep,
    cache: LayerCache, rope: RopeTable, groups: Groups,
) -> Sequence[Tensor | None]:  # fmt: skip
    """For each token of a row the entries that its index queries q [W * B, IH * ID] choose, if there is an indexer.

    `side` gives the weights of its heads, when the step's entries are there.
    """
    if attn.indexer is None:
        if side is not None:
            side()
        return [None] * step.width
    q = q.view(len(q), -1, attn.indexer.head_dim)
    q = ops.index_queries(q, rope.cos, rope.sin, step.positions, attn.indexer.quantise)
    assert side is not None
    weights, keys = side(), cache.index_k
    assert weights is not None
    assert keys is not None
    keys = keys[:, : min(keys.shape[1] - 1, step.reach // OVERLAP_RATIO)]
    chosen = []
    for rows, each in step.apart():
        if groups.mp == 1:
            chosen.append(ops.choose_entries(q[rows], keys, weights[rows], each.visible, attn.indexer.topk))
        else:  # every rank scores with its own heads
            scores = groups.all_sum(ops.indexer_scores(q[rows, None], keys, weights[rows, None]))
            chosen.append(ops.best_visible(scores[:, 0], each.visible, attn.indexer.topk))
    return chosen
