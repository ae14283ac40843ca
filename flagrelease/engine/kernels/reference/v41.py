"""The operators that DeepSeek-V4.1 has beyond V4's, in plain torch: delayed mHC, shared keys, candidates, Engram.

Formulas: DeepSeek's inference/model.py of V4.1, which no other file restates. The contract is that of the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flagrelease.engine.kernels.reference.attention import sparse_attention, topk_visible
from flagrelease.engine.kernels.reference.e4m3 import numbers, to_e4m3
from flagrelease.engine.kernels.reference.experts import sum_experts
from flagrelease.engine.kernels.reference.hyper_connections import hc_split_sinkhorn
from flagrelease.engine.kernels.reference.linear import linear
from flagrelease.engine.kernels.reference.precision import wide
from flagrelease.engine.kernels.reference.quantisation import E2M1_MAX, decode_fp8, e2m1_codes, e2m1_values
from flagrelease.engine.kernels.weights import FP8_TILE, ExpertWeights, check_tiled_weight

__all__ = [
    "candidate_blocks",
    "engram_gate",
    "engram_rows",
    "fp4_keys_roundtrip",
    "fp8_linear_32",
    "hc_collapse",
    "hc_delayed",
    "moe_experts_32",
    "ngram_rows",
    "route_modal",
    "shared_attention",
    "topk_candidates",
]

KEY_GROUP = 16  # columns of a shared key that share a scale
KEY_AMAX_FLOOR = 6.0 * 2.0**-9  # makes the least scale E4M3's least number
ACT_GROUP = 32  # columns of an activation that share a scale
ROUTE_FLOOR = 1e-20
DOT_FLOOR = 1e-6


def hc_collapse(x: Tensor, pre: Tensor) -> Tensor:
    """The streams as one: sum_j pre_j x_j of x [.., M, H] by pre FP32 [.., M] -> [.., H] in x's dtype."""
    return (wide(pre)[..., None] * wide(x)).sum(-2).to(x.dtype)


def hc_delayed(
    x: Tensor, mixes: Tensor, squares: Tensor, scale: Tensor, base: Tensor, iters: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The weights of `hc_split_sinkhorn`, by the mixes of x as `hc_mixes` gives them: pre, post [B, M], comb [B, M, M].

    `pre` is for the sub-layer that comes after the one of post and comb.

    Args:
        x: [B, M, H], the streams.
        mixes: FP32 parts [S, B, 2M + M*M].
        squares: FP32 parts [S, B].
        scale: FP32 [3].
        base: FP32 [2M + M*M].
        iters: see `hc_split_sinkhorn`.
        eps: see `hc_split_sinkhorn`.
        norm_eps: of the RMS over all M*H values.
    """
    count = x.shape[1] * x.shape[2]
    whole = mixes.sum(0) * torch.rsqrt(squares.sum(0) / count + norm_eps)[:, None]
    return hc_split_sinkhorn(whole, scale, base, x.shape[1], iters, eps)


def fp4_keys_roundtrip(x: Tensor, out: Tensor | None = None) -> Tensor:
    """`x` [.., N] quantised to FP4 and dequantised, in x's dtype: E4M3 scales for groups of 16 columns.

    s = E4M3(max(max |x|, 6 * 2^-9) / 6), the code is E2M1(clamp(x / s, -6, 6)), the result value * s. The scale may be
    rounded down, so the largest of a group may be cut.
    """
    if x.shape[-1] % KEY_GROUP:
        raise ValueError(f"groups of {KEY_GROUP} columns do not divide {x.shape[-1]}")
    groups = x.float().reshape(*x.shape[:-1], -1, KEY_GROUP)
    amax = groups.abs().amax(-1).clamp(min=KEY_AMAX_FLOOR)
    # A tensor on both sides: by a number, torch multiplies with the reciprocal on CUDA.
    scale = numbers(to_e4m3(amax / torch.full_like(amax, E2M1_MAX)))[..., None]
    codes = e2m1_codes((groups / scale).clamp(-E2M1_MAX, E2M1_MAX))
    values = e2m1_values(codes[..., 0::2] | (codes[..., 1::2] << 4))
    y = (values * scale).flatten(-2).to(x.dtype)
    return y if out is None else out.copy_(y)


def fp8_linear_32(x: Tensor, w: Tensor, ws: Tensor, out_dtype: torch.dtype) -> Tensor:
    """x W^T of an FP8 weight with a scale for each tile of 32 x 32.

    Args:
        x: [.., K], rounded before by `act_quant_roundtrip` in groups of 32 if at all.
        w: E4M3 [N, K].
        ws: E8M0 [ceil(N / 32), ceil(K / 32)].
        out_dtype: of the result [.., N].
    """
    check_tiles(x, w, ws)
    return linear(x, decode_fp8(w, ws, torch.float32, (FP8_TILE, FP8_TILE)), out_dtype)


def check_tiles(x: Tensor, w: Tensor, ws: Tensor) -> None:
    """Refuse what does not fit together.

    Raises:
        ValueError: dtypes or shapes.
    """
    check_tiled_weight(w, ws)
    if x.shape[-1] != w.shape[1]:
        raise ValueError(f"the activation has {x.shape[-1]} columns, the weight {w.shape[1]}")


def shared_attention(
    q: Tensor, window: Tensor, entries: Tensor | None, sink: Tensor, window_idx: Tensor, entry_idx: Tensor | None,
    scale: float,
) -> Tensor:  # fmt: skip
    """`sparse_attention` over two lists of keys, a layer's own and those that layers share, in one softmax.

    Args:
        q: [b, s, h, d].
        window: [b, R, d], the layer's own keys.
        entries: [b, C, d], the shared ones; None where a layer reads none.
        sink: FP32 [h].
        window_idx: int32 [b, s, w] into R, -1 = none.
        entry_idx: int32 [b, s, k] into C, -1 = none.
        scale: d^(-1/2) in V4.1.

    Returns:
        [b, s, h, d] in q's dtype.
    """
    if entries is None or entry_idx is None:
        return sparse_attention(q, window, sink, window_idx, scale)
    behind = torch.where(entry_idx < 0, -1, entry_idx + window.shape[1])
    return sparse_attention(q, torch.cat((window, entries), 1), sink, torch.cat((window_idx, behind), -1), scale)


def candidate_blocks(scores: Tensor, visible: Tensor, size: int, k: int) -> Tensor:
    """The k blocks of `size` consecutive entries with the best entries; the block of the newest one is always chosen.

    Args:
        scores: FP32 [b, s, n].
        visible: integers [b, s], entries a query may see (a prefix).
        size: entries of a block.
        k: blocks wanted.

    Returns:
        int32 [b, s, min(k, ceil(n / size))], ascending, then -1: of equal blocks the lower ones are taken.
    """
    n = scores.shape[-1]
    entry = torch.arange(n, device=scores.device)
    seen = scores.masked_fill(entry >= visible[..., None], -torch.inf)
    short = -n % size
    padded = torch.nn.functional.pad(seen, (0, short), value=-torch.inf)
    best = padded.view(*padded.shape[:-1], -1, size).amax(-1)
    blocks = torch.arange(best.shape[-1], device=scores.device)
    best = best.masked_fill(blocks == ((visible - 1) // size)[..., None], torch.inf)
    return topk_visible(best, (visible + size - 1) // size, k)


def topk_candidates(scores: Tensor, visible: Tensor, k: int, blocks: Tensor, size: int) -> Tensor:
    """`topk_visible` of the entries in some blocks alone.

    Args:
        scores: FP32 [b, s, n].
        visible: integers [b, s].
        k: entries wanted.
        blocks: int32 [b, s, m], see `candidate_blocks`.
        size: entries of a block.

    Returns:
        int32 [b, s, min(k, n)]: indices ascending, then -1; of equal scores the lower indices are taken.
    """
    n = scores.shape[-1]
    allowed = torch.zeros(*scores.shape[:-1], -(-n // size) + 1, dtype=torch.bool, device=scores.device)
    allowed.scatter_(-1, torch.where(blocks < 0, allowed.shape[-1] - 1, blocks).long(), True)
    entry = torch.arange(n, device=scores.device)
    inside = allowed[..., :-1].repeat_interleave(size, -1)[..., :n] & (entry < visible[..., None])
    order = scores.masked_fill(~inside, -torch.inf).sort(stable=True, descending=True).indices[..., :k]
    best = order.masked_fill(~inside.gather(-1, order), n).sort(-1).values  # the others are named n: they go last
    return torch.where(best == n, -1, best).int()


def route_modal(
    scores: Tensor, bias: Tensor, bias_vl: Tensor, image: Tensor | None, topk: int, route_scale: float
) -> tuple[Tensor, Tensor]:
    """`route` with another bias for tokens of images, and a floor under the sum of weights.

    Args:
        scores: FP32 [T, E] from `gate_scores`.
        bias: FP32 [E], of text.
        bias_vl: FP32 [E], of images.
        image: bool [T], which tokens are an image's; None: none.
        topk: experts a token.
        route_scale: routed_scaling_factor.

    Returns:
        ids int32 [T, topk], best first, the lower id first among equals; weights [T, topk] in scores' dtype,
        scores[ids] / (sum + 1e-20) * route_scale.
    """
    chosen = bias if image is None else torch.where(image[:, None], bias_vl, bias)
    ids = (scores + chosen).sort(stable=True, descending=True).indices[..., :topk]
    weights = scores.gather(-1, ids)
    return ids.int(), weights / (weights.sum(-1, keepdim=True) + ROUTE_FLOOR) * route_scale


def moe_experts_32(
    x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights, swiglu_limit: float, quantise_activations: bool
) -> Tensor:  # fmt: skip
    """`moe_experts` whose inputs are rounded to FP8 in groups of 32 columns, not of 128.

    FP4 and plain experts, and FP8 ones whose tiles have a scale for each row (`weights.spread_over_rows`).
    """
    return sum_experts(x, ids, weights, experts, swiglu_limit, quantise_activations, ACT_GROUP)


def ngram_rows(ids: Tensor, multipliers: Tensor, primes: Tensor, offsets: Tensor) -> Tensor:
    """The rows of an Engram table that a token's n-grams name.

    h = T_0 M_0, and for s = 1, 2, ..: h = h xor T_s M_s, row = h mod prime + offset for each head of order s + 1.

    Args:
        ids: int64 [.., L], T_0 to T_(L-1): compressed ids of a token and of those before it, or the pad.
        multipliers: int64 [L]; no product with an id passes 2^63.
        primes: int64 [L - 1, heads].
        offsets: int64 [L - 1, heads].

    Returns:
        int64 [.., (L - 1) * heads], by order, then by head.
    """
    products = ids * multipliers
    mixed, rows = products[..., 0], list[Tensor]()
    for s in range(1, ids.shape[-1]):
        mixed = mixed ^ products[..., s]
        rows.append(mixed[..., None] % primes[s - 1] + offsets[s - 1])
    return torch.cat(rows, -1)


def engram_rows(codes: Tensor, scales: Tensor | None, rows: Tensor, first: int = 0) -> Tensor:
    """Rows of an Engram table one behind the other, BF16 (float64 of a float64 table).

    Args:
        codes: E4M3 [R, w], this rank's rows; or plain.
        scales: E8M0 [R, w / 32] of codes; None of plain rows.
        rows: integers [.., n], of the whole table; rows of other ranks give zeros.
        first: of the whole table's rows the first that is here.

    Returns:
        [.., n * w].
    """
    local = rows.long() - first
    owned = (local >= 0) & (local < len(codes))
    local = local.where(owned, 0).to(codes.device)
    if scales is None:
        values = codes[local]
    else:
        scale = numbers(scales.view(torch.uint8)[local].view(scales.dtype))
        read = numbers(codes.view(torch.uint8)[local].view(codes.dtype))
        values = (read.view(*scale.shape, -1) * scale[..., None]).flatten(-2).to(torch.bfloat16)
    return values.to(rows.device).masked_fill(~owned[..., None], 0).flatten(-2)


def engram_gate(
    x: Tensor, kv: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, text: Tensor | None = None
) -> Tensor:
    """What the memory adds to each stream, as much as the stream asks for it.

    dot_k = sum(x_k q_k k_k K_k) rsqrt(mean x_k^2 + eps) rsqrt(mean K_k^2 + eps) H^(-1/2),
    x_k + sigmoid(sign(dot_k) sqrt(max(|dot_k|, 1e-6))) U.

    Args:
        x: [.., M, H], the streams.
        kv: [.., (M + 1) H]: K_0 to K_(M-1), then U.
        q_weight: [M, H].
        k_weight: [M, H].
        eps: of the norms.
        text: bool [..], tokens that are no image's; the others stay as they are. None: all are text.

    Returns:
        [.., M, H] in x's dtype.
    """
    streams, read = wide(x), wide(kv).reshape(*x.shape[:-2], x.shape[-2] + 1, -1)
    keys, value = read[..., :-1, :], read[..., -1:, :]
    dot = (streams * wide(q_weight) * wide(k_weight) * keys).sum(-1)
    for each in (streams, keys):
        dot = dot * torch.rsqrt(each.square().mean(-1) + eps)
    dot = dot * x.shape[-1] ** -0.5
    gate = torch.sigmoid(dot.sign() * dot.abs().clamp(min=DOT_FLOOR).sqrt())
    y = (streams + gate[..., None] * value).to(x.dtype)
    return y if text is None else torch.where(text[..., None, None], y, x)
