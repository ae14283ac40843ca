"""The fused operators of decoding, a few tokens a row: each is a composition of the other definitions.

T tokens are those of all B rows of the caches, first each row's first one: token t is of row t mod B. `positions` [T]
says where each goes; -1 marks one that there is not: nothing of it is written to a cache, and its results mean nothing.
So shapes depend on the batch alone, and a captured step can be replayed. Products come in parts, see `parts`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flagrelease.engine.kernels.reference.attention import (
    compress_pool,
    indexer_scores,
    sparse_attention,
    topk_visible,
)
from flagrelease.engine.kernels.reference.experts import moe_experts, route, route_hashed
from flagrelease.engine.kernels.reference.key_rows import pack_index_keys, pack_keys
from flagrelease.engine.kernels.reference.parts import Quantised, quantised, whole
from flagrelease.engine.kernels.reference.quantisation import act_quant_roundtrip, fp4_act_quant_roundtrip, scaled_fp16
from flagrelease.engine.kernels.reference.rows import apply_rope, hadamard, rms_norm
from flagrelease.engine.kernels.weights import ExpertWeights

Rounding = Literal["none", "fp8", "hadamard", "hadamard_fp4"]
KEY_GROUP = 64  # columns of a cached key that share one FP8 scale


def latents(
    parts: Tensor, q_norm: Tensor, kv_norm: Tensor, eps: float, cos: Tensor, sin: Tensor, positions: Tensor, kv: Tensor,
    first: int, quantise: bool, quantise_kv: bool,
) -> Quantised:  # fmt: skip
    """The query latent, normed and (`quantise`) rounded; the key normed, rotated, rounded and written to the ring.

    Args:
        parts: FP32 [S, T, QR + HD], x through wq_a and wkv.
        q_norm: [QR].
        kv_norm: [HD].
        eps: of both norms.
        cos: FP32 [positions, r/2], whole table.
        sin: like cos.
        positions: int64 [T].
        kv: [B, slots, HD] or rows of `pack_keys`, written to: the ring runs from slot `first` to the last but one.
        first: compressed entries before the ring.
        quantise: also return `act_quant` of the latent.
        quantise_kv: round the key to FP8 in all but the rotated columns.
    """
    both = whole(parts, _computed(kv))
    key = _rotated(rms_norm(both[:, len(q_norm) :], kv_norm, eps), cos, sin, positions)
    rotary = 2 * cos.shape[-1]
    if kv.dtype == torch.uint8:
        key = pack_keys(key)
    elif quantise_kv:
        key[:, :-rotary] = act_quant_roundtrip(key[:, :-rotary], KEY_GROUP)
    ring = kv.shape[1] - 1 - first
    rows = torch.arange(len(positions), device=kv.device) % len(kv)
    slot = torch.where(positions < 0, kv.shape[1] - 1, first + positions % ring)
    kv[rows, slot] = key.where((positions >= 0)[:, None], kv[rows, slot])
    return quantised(rms_norm(both[:, : len(q_norm)], q_norm, eps), quantise)


def compress_token(
    kv: Tensor, score: Tensor, ape: Tensor, norm: Tensor, eps: float, cos: Tensor, sin: Tensor, positions: Tensor,
    pending_kv: Tensor, pending_score: Tensor, entries: Tensor, rounding: Rounding,
) -> None:  # fmt: skip
    """Remember tokens in a compressor; where one completes a window, pool that into an entry and write it.

    Args:
        kv: FP32 parts [S, T, c]; c is twice the entries' width where windows overlap.
        score: like kv, without ape.
        ape: FP32 [ratio, c].
        norm: [d].
        eps: of the norm.
        cos: FP32 [positions, r/2], whole table.
        sin: like cos.
        positions: int64 [T].
        pending_kv: FP32 [B, N + 2, c], written to at position mod N; slot N is empty for ever. An entry pools c / d
            windows, and for each token of a row after the first there must be a slot more than they have tokens.
        pending_score: like pending_kv; slot N is -inf.
        entries: [B, .., d], entry w at index w, written to in its dtype; or rows of `pack_keys` (rounding fp8) or of
            `pack_index_keys` (hadamard_fp4).
        rounding: of an entry: FP8 in all but the rotated columns, or Hadamard and (the indexer's) FP4.
    """
    ratio, d, dtype = len(ape), len(norm), _computed(entries)
    slots = pending_kv.shape[1] - 2
    now_kv, now_score = kv.sum(0), score.sum(0) + ape[positions % ratio]
    pooled = ratio * (kv.shape[-1] // d)
    for t, position in enumerate(positions.tolist()):
        row = t % len(entries)
        if position < 0:
            continue
        pending_kv[row, position % slots], pending_score[row, position % slots] = now_kv[t], now_score[t]
        if (position + 1) % ratio:
            continue
        tokens = torch.arange(position + 1 - pooled, position + 1, device=kv.device)
        source = torch.where(tokens < 0, slots, tokens % slots)
        window_kv, window_score = pending_kv[row, source], pending_score[row, source]
        if pooled > ratio:  # the previous window's first channels, the current one's second
            window_kv = torch.cat((window_kv[:ratio, :d], window_kv[ratio:, d:]))
            window_score = torch.cat((window_score[:ratio, :d], window_score[ratio:, d:]))
        entry = rms_norm(compress_pool(window_kv, window_score)[None].to(dtype), norm, eps)
        entry = _rotated(entry, cos, sin, positions[t : t + 1] + 1 - ratio)
        if entries.dtype == torch.uint8:
            entry = pack_keys(entry) if rounding == "fp8" else pack_index_keys(hadamard(entry))
        else:
            entry = _rounded(entry, 2 * cos.shape[-1], rounding)
        entries[row, position // ratio] = entry[0]


def index_queries(q: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, quantise: bool) -> Tensor:
    """The indexer's queries [T, IH, ID] rotated and through `hadamard` (and FP4)."""
    return _rounded(_rotated(q, cos, sin, positions), 0, "hadamard_fp4" if quantise else "hadamard")


def best_visible(scores: Tensor, visible: Tensor, k: int) -> Tensor:
    """`topk_visible` of scores [T, n] and visible [T], in an order of the implementation's choice; -1 last."""
    return topk_visible(scores, visible, k)


def choose_entries(q: Tensor, keys: Tensor, weights: Tensor, visible: Tensor, k: int) -> Tensor:
    """`best_visible` of the indexer's scores: the entries that each query attends to.

    Args:
        q: [T, IH, ID], of `index_queries`.
        keys: [B, n, ID], or rows of `pack_index_keys`.
        weights: FP32 [T, IH], of the heads.
        visible: integers [T], entries that are complete.
        k: entries wanted.
    """
    scores = indexer_scores(_by_row(q, keys), keys, _by_row(weights, keys))
    return best_visible(_by_token(scores), visible, k)


def decode_attention(
    q: Tensor, kv: Tensor, sink: Tensor, chosen: Tensor | None, positions: Tensor, cos: Tensor, sin: Tensor, first: int,
    window: int, ratio: int, entries: int, eps: float, scaled: bool, stepwise: bool,
    newest: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Attention of each query: norm and rotate q, attend, rotate back: [T, NH, HD], and scales if asked for.

    A query sees the `window` last positions in the ring, and compressed entries: those `chosen`, or all complete ones.

    Args:
        q: [T, NH, HD], as wq_b gives it.
        kv: [B, slots, HD], see `latents`.
        sink: FP32 [NH].
        chosen: int32 [T, k] entries, -1 = none; None: every entry that is complete.
        positions: int64 [T].
        cos: FP32 [positions, r/2], whole table.
        sin: like cos.
        first: compressed entries before the ring.
        window: tokens, the newest one included.
        ratio: tokens of an entry; 0: there are none.
        entries: no row has more complete ones than this.
        eps: of the heads' norm.
        scaled: return `scaled_fp16` of the result.
        stepwise: round each step of the heads' norm, see `rms_norm`.
        newest: int64 [T], the last position that each query sees; None: its own.
    """
    newest = positions if newest is None else newest
    q = _rotated(rms_norm(q, None, eps, stepwise=stepwise), cos, sin, positions)
    back = newest[:, None] - torch.arange(window - 1, -1, -1, device=q.device)
    listed = torch.where(back < 0, -1, first + back % (kv.shape[1] - 1 - first))
    if chosen is not None:
        listed = torch.cat((chosen, listed), 1)
    elif ratio:
        entry = torch.arange(entries, device=q.device)
        listed = torch.cat((torch.where(entry < ((newest + 1) // ratio)[:, None], entry, -1), listed), 1)
    listed = listed.where((positions >= 0)[:, None], -1)
    o = _by_token(sparse_attention(_by_row(q, kv), kv, sink, _by_row(listed, kv).int(), q.shape[-1] ** -0.5))
    o = _rotated(o, cos, sin, positions, inverse=True)
    return scaled_fp16(o) if scaled else (o, None)


def gate_route(
    parts: Tensor, bias: Tensor | None, positions: Tensor, topk: int, route_scale: float
) -> tuple[Tensor, Tensor]:
    """`gate_scores` of the gate's FP32 parts [S, B, E], then `route`; rows without a token go to expert -1."""
    ids, weights = route(_gate(parts), bias, topk, route_scale)
    return _routed(ids, positions), weights


def gate_route_hashed(
    parts: Tensor, tid2eid: Tensor, tokens: Tensor, positions: Tensor, route_scale: float
) -> tuple[Tensor, Tensor]:
    """`gate_scores` of the gate's FP32 parts [S, B, E], then `route_hashed`; rows without a token go to expert -1."""
    ids, weights = route_hashed(_gate(parts), tid2eid, tokens, route_scale)
    return _routed(ids, positions), weights


def expert_outputs(
    x: Tensor, xq: Tensor | None, xs: Tensor | None, ids: Tensor, weights: Tensor, experts: ExpertWeights,
    swiglu_limit: float, quantise: bool, out: Tensor,
) -> Tensor:  # fmt: skip
    """What `moe_experts` adds up, not added: out[b, slot], zero for experts of other ranks.

    Args:
        x: [B, H].
        xq: E4M3 [B, H], of `act_quant(x)`; given where experts are stored in codes and inputs are rounded.
        xs: FP32 [B, H/128].
        ids: int32 [B, k].
        weights: FP32 [B, k].
        experts: stacked local experts.
        swiglu_limit: see `swiglu`.
        quantise: round inputs to FP8.
        out: [B, k, H] in x's dtype, written to.
    """
    for slot in range(ids.shape[1]):
        one = slice(slot, slot + 1)
        out[:, slot] = moe_experts(x, ids[:, one], weights[:, one], experts, swiglu_limit, quantise)
    return out


def _by_row(x: Tensor, cache: Tensor) -> Tensor:
    """x [T, ..] as [B, S, ..] for the B rows of `cache`, each of which has S tokens."""
    return x.view(-1, len(cache), *x.shape[1:]).transpose(0, 1)


def _by_token(x: Tensor) -> Tensor:
    """x [B, S, ..] as [T, ..]."""
    return x.transpose(0, 1).flatten(0, 1)


def _computed(keys: Tensor) -> torch.dtype:
    """The dtype of the numbers that `keys` are or hold."""
    return torch.bfloat16 if keys.dtype == torch.uint8 else keys.dtype


def _gate(parts: Tensor) -> Tensor:
    return torch.sqrt(torch.nn.functional.softplus(parts.sum(0)))


def _routed(ids: Tensor, positions: Tensor) -> Tensor:
    return ids.where((positions >= 0)[:, None], -1)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, inverse: bool = False) -> Tensor:
    """A copy of x [B, d] or [B, heads, d] with its last columns rotated to (or from) the rows' positions."""
    y, rotary, at = x.clone(), 2 * cos.shape[-1], positions.clamp(min=0)
    c, s = (t[at] if x.dim() == 2 else t[at][:, None] for t in (cos, sin))
    apply_rope(x[..., -rotary:], c, s, inverse, out=y[..., -rotary:])
    return y


def _rounded(x: Tensor, rotary: int, rounding: Rounding) -> Tensor:
    if rounding == "fp8":
        return torch.cat((act_quant_roundtrip(x[..., :-rotary], KEY_GROUP), x[..., -rotary:]), -1)
    if rounding == "none":
        return x
    spread = hadamard(x)
    return fp4_act_quant_roundtrip(spread) if rounding == "hadamard_fp4" else spread
