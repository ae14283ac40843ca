"""Attention of one layer for a token or two a row: the same mathematics as `engine.attention`, in fewer launches.

Legend: B rows, W tokens a row, H hidden, NH heads, HD head_dim, G o-groups, S parts of a product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flagrelease.engine.attention import Attention
from flagrelease.engine.cache import OVERLAP_RATIO, LayerCache, Pending
from flagrelease.engine.compressor import Compressor
from flagrelease.engine.decode.step import DecodeStep
from flagrelease.engine.indexer import Indexer
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.kernels.reference.decoding import Rounding
from flagrelease.engine.linear import Rounded, project_parts, project_rounded
from flagrelease.engine.parallel import Groups
from flagrelease.engine.rope import RopeTable


def attend(
    ops: Operators, attn: Attention, x: Rounded, step: DecodeStep, cache: LayerCache, rope: RopeTable, groups: Groups
) -> Tensor:
    """x [W * B, H] -> FP32 parts [S, W * B, H] of this rank's output; extends the cache by the step's tokens.

    Products are of all tokens together: weights are read once. Caches take one token a row at a time.
    """
    entries, parts, apart = step.entries(attn.ratio), project_parts(ops, x, attn.latents), step.apart()
    latents = [
        ops.latents(
            parts[:, rows], attn.q_norm, attn.kv_norm, attn.eps, rope.cos, rope.sin, each.positions, cache.kv, entries,
            attn.wq_b.takes_codes, attn.quantise_kv,
        )
        for rows, each in apart
    ]  # fmt: skip
    qr = Rounded.stack([Rounded(*latent) for latent in latents])
    (q,) = project_rounded(ops, qr, attn.wq_b)
    q = q.view(len(q), -1, attn.head_dim)
    side = None if attn.side is None else ops.linear_parts(x.plain, attn.side)
    index_q = None if attn.indexer is None else project_rounded(ops, qr, attn.indexer.wq_b)[0]
    outputs = []
    for rows, each in apart:
        chosen = None
        if side is not None:
            own = None if index_q is None else index_q[rows]
            chosen = _compress(ops, attn, side[:, rows], own, each, cache, rope, groups)
        reached = min(entries, step.reach // attn.ratio) if attn.ratio else 0
        o = ops.decode_attention(
            q[rows], cache.kv, attn.sink, chosen, each.positions, rope.cos, rope.sin, entries,
            attn.window, attn.ratio, reached, attn.eps,
        )  # fmt: skip
        outputs.append(o)
    o = torch.cat(outputs) if step.width > 1 else outputs[0]
    return project_parts(ops, _project_groups(ops, attn, groups.gather_heads(o), groups), attn.wo_b)


def _project_groups(ops: Operators, attn: Attention, o: Tensor, groups: Groups) -> Rounded:
    """o [B, NH, HD] through wo_a, group by group, as wo_b takes it: [B, G * OR]. Sums over ranks are FP32."""
    if attn.wo_a_scale is None or groups.o_mode == "split":
        partial = torch.float32 if groups.o_mode == "split" else o.dtype
        y = groups.sum_o_lora(attn.project_groups(ops, o, partial)).to(o.dtype)
        return Rounded.of(ops, y.flatten(1), attn.wo_b)
    by_group = o.reshape(len(o), attn.wo_a.shape[0], attn.wo_a.shape[2])
    parts = ops.fp8_grouped_linear_parts(by_group, attn.wo_a, attn.wo_a_scale)
    return Rounded(*ops.round_parts(parts, o.dtype, attn.wo_b.takes_codes))


def _compress(
    ops: Operators, attn: Attention, side: Tensor, index_q: Tensor | None, step: DecodeStep, cache: LayerCache,
    rope: RopeTable, groups: Groups,
) -> Tensor | None:  # fmt: skip
    """Feed both compressors from `side` [S, B, ..]; let the indexer choose by its queries [B, IH * ID]."""
    assert attn.compressor is not None
    assert cache.pending is not None
    rounding: Rounding = "fp8" if attn.quantise_kv else "none"
    side = _feed(ops, attn.compressor, side, step, cache.pending, cache.kv, rope, rounding)
    if attn.indexer is None:
        return None
    assert index_q is not None
    assert cache.index_k is not None
    assert cache.index_pending is not None
    rounding = "hadamard_fp4" if attn.indexer.quantise else "hadamard"
    side = _feed(ops, attn.indexer.compressor, side, step, cache.index_pending, cache.index_k, rope, rounding)
    return _choose(ops, attn.indexer, side, index_q, step, cache.index_k, rope, groups)


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
    ops: Operators, indexer: Indexer, weights: Tensor, q: Tensor, step: DecodeStep, keys: Tensor, rope: RopeTable,
    groups: Groups,
) -> Tensor:  # fmt: skip
    """The entries of each row by its queries: every rank scores with its own heads."""
    q = q.view(len(q), -1, indexer.head_dim)
    q, weights = ops.index_queries(q, weights, rope.cos, rope.sin, step.positions, indexer.quantise)
    reached = min(keys.shape[1] - 1, step.reach // OVERLAP_RATIO)
    scores = groups.all_sum(ops.indexer_scores(q[:, None], keys[:, :reached], weights[:, None]))
    return ops.topk_visible(scores, step.visible[:, None], indexer.topk)[:, 0]
