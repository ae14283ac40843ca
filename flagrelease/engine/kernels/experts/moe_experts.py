"""The routed experts in Triton, grouped by expert on the device: no host loop, no synchronisation, static shapes.

Legend: T tokens, K experts of each, P = T*K pairs (a token and one of its experts), E local experts, H hidden size,
MI expert width. Steps: plan (sort the local pairs by expert), quantise x, gate-up (w1, w3 and SwiGLU), quantise, down,
combine (each token sums its local pairs, slot by slot, so that the result does not depend on the batch).
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.experts import fp4_experts, widened_experts
from flagrelease.engine.kernels.experts.expert_plan import plan_pairs
from flagrelease.engine.kernels.experts.swiglu import clamped_swiglu
from flagrelease.engine.kernels.interpreter import cast
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, unit_columns
from flagrelease.engine.kernels.linear.linear import stored_scale
from flagrelease.engine.kernels.linear.product import product
from flagrelease.engine.kernels.linear.tiles import tile_shape
from flagrelease.engine.kernels.quantisation.act_quant import act_quant, act_quant_roundtrip
from flagrelease.engine.kernels.quantisation.mx_act_quant import mx_act_quant_roundtrip
from flagrelease.engine.kernels.quantisation.token_quant import token_quant
from flagrelease.engine.kernels.weights import FP8_BLOCK, ExpertWeights


@early_kernel
def _gate_up_kernel(
    x_ptr: tl.tensor,
    xs_ptr: tl.tensor,
    w1_ptr: tl.tensor,
    w3_ptr: tl.tensor,
    s1_ptr: tl.tensor,
    s3_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    pairs_ptr: tl.tensor,
    start_ptr: tl.tensor,
    h_ptr: tl.tensor,
    limit: tl.tensor,
    slots: tl.tensor,
    MI: tl.tensor,
    H: tl.tensor,
    x_row: tl.tensor,
    xs_row: tl.tensor,
    w_row: tl.tensor,
    w_expert: tl.tensor,
    s_row: tl.tensor,
    s_expert: tl.tensor,
    FORMAT: tl.constexpr,
    QUANTISED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """h[sorted pair] = swiglu(w1 x, w3 x) * routing weight, each product rounded to h's dtype first."""
    wait_for_results()
    e = tl.program_id(1).to(tl.int64)
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    begin, end = tl.load(start_ptr + e), tl.load(start_ptr + e + 1)
    w1, w3 = w1_ptr + e * w_expert + n * w_row, w3_ptr + e * w_expert + n * w_row
    s1, s3 = w1, w3  # not read by a plain product
    if FORMAT == "fp8":
        block = e * s_expert + tl.program_id(0) * BLOCK_N // 128 * s_row
        s1, s3 = s1_ptr + block, s3_ptr + block
    elif FORMAT != "plain":
        s1, s3 = s1_ptr + e * s_expert + n * s_row, s3_ptr + e * s_expert + n * s_row
    for m0 in range(begin, end, BLOCK_M):
        m = (m0 + tl.arange(0, BLOCK_M)).to(tl.int64)
        pair = tl.load(pairs_ptr + m, mask=m < end, other=0).to(tl.int64)
        x = x_ptr + pair // slots * x_row
        xs = x
        if QUANTISED:
            xs = xs_ptr + pair // slots * xs_row
        gate = product(x, xs, m < end, w1, s1, n < MI, 0, H, H, FORMAT, QUANTISED, BLOCK_M, BLOCK_N, BLOCK_K, False)
        up = product(x, xs, m < end, w3, s3, n < MI, 0, H, H, FORMAT, QUANTISED, BLOCK_M, BLOCK_N, BLOCK_K, False)
        gate = cast(gate, h_ptr.dtype.element_ty).to(tl.float32)
        up = cast(up, h_ptr.dtype.element_ty).to(tl.float32)
        weight = tl.load(weights_ptr + pair, mask=m < end, other=0.0)
        h = cast(clamped_swiglu(gate, up, limit) * weight[:, None], h_ptr.dtype.element_ty)
        tl.store(h_ptr + m[:, None] * MI + n[None, :], h, mask=(m < end)[:, None] & (n < MI)[None, :])


@early_kernel
def _down_kernel(
    h_ptr: tl.tensor,
    hs_ptr: tl.tensor,
    w2_ptr: tl.tensor,
    s2_ptr: tl.tensor,
    pairs_ptr: tl.tensor,
    start_ptr: tl.tensor,
    y_ptr: tl.tensor,
    H: tl.tensor,
    MI: tl.tensor,
    hs_row: tl.tensor,
    w_row: tl.tensor,
    w_expert: tl.tensor,
    s_row: tl.tensor,
    s_expert: tl.tensor,
    FORMAT: tl.constexpr,
    QUANTISED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """y[pair] = w2 h[sorted pair], rounded to y's dtype."""
    wait_for_results()
    e = tl.program_id(1).to(tl.int64)
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    begin, end = tl.load(start_ptr + e), tl.load(start_ptr + e + 1)
    w2 = w2_ptr + e * w_expert + n * w_row
    s2 = w2
    if FORMAT == "fp8":
        s2 = s2_ptr + e * s_expert + tl.program_id(0) * BLOCK_N // 128 * s_row
    elif FORMAT != "plain":
        s2 = s2_ptr + e * s_expert + n * s_row
    for m0 in range(begin, end, BLOCK_M):
        m = (m0 + tl.arange(0, BLOCK_M)).to(tl.int64)
        pair = tl.load(pairs_ptr + m, mask=m < end, other=0).to(tl.int64)
        h = h_ptr + m * MI
        hs = h
        if QUANTISED:
            hs = hs_ptr + m * hs_row
        acc = product(h, hs, m < end, w2, s2, n < H, 0, MI, MI, FORMAT, QUANTISED, BLOCK_M, BLOCK_N, BLOCK_K, False)
        y = y_ptr + pair[:, None] * H + n[None, :]
        tl.store(y, cast(acc, y_ptr.dtype.element_ty), mask=(m < end)[:, None] & (n < H)[None, :])


@early_kernel
def _combine_kernel(
    ids_ptr: tl.tensor,
    y_ptr: tl.tensor,
    out_ptr: tl.tensor,
    first: tl.tensor,
    E: tl.tensor,
    H: tl.tensor,
    SLOTS: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    wait_for_results()
    t = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    acc = tl.zeros((BLOCK_H,), tl.float32)
    for slot in tl.static_range(SLOTS):
        local = tl.load(ids_ptr + t * SLOTS + slot + tl.arange(0, 1)).to(tl.int32) - first  # a block: masks are blocks
        owned = (local >= 0) & (local < E)
        acc += tl.load(y_ptr + (t * SLOTS + slot) * H + h, mask=owned & (h < H), other=0.0).to(tl.float32)
    tl.store(out_ptr + t * H + h, acc, mask=h < H)


@early_kernel
def _place_kernel(
    ids_ptr: tl.tensor,
    y_ptr: tl.tensor,
    out_ptr: tl.tensor,
    first: tl.tensor,
    E: tl.tensor,
    H: tl.tensor,
    slots: tl.tensor,
    out_token: tl.tensor,
    out_slot: tl.tensor,
    BLOCK_H: tl.constexpr,
) -> None:
    """out[token, slot] = y[pair], zero where the pair's expert is not here."""
    wait_for_results()
    p = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    local = tl.load(ids_ptr + p + tl.arange(0, 1)).to(tl.int32) - first  # a block: masks are blocks
    y = tl.load(y_ptr + p * H + h, mask=(local >= 0) & (local < E) & (h < H), other=0.0)
    tl.store(out_ptr + p // slots * out_token + p % slots * out_slot + h, y, mask=h < H)


def moe_experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    experts: ExpertWeights,
    swiglu_limit: float,
    quantise_activations: bool,
) -> Tensor:
    """See `reference.moe_experts`. BF16 or FP32 activations."""
    return sum_experts(x, ids, weights, experts, swiglu_limit, quantise_activations, FP8_BLOCK)


def sum_experts(
    x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights, swiglu_limit: float, quantise_activations: bool,
    group: int,
) -> Tensor:  # fmt: skip
    """See `reference.experts.sum_experts`; kernels of arranged experts round groups of 128."""
    ids, weights, x = _checked(x, ids, weights, experts)
    if experts.arranged and quantise_activations and group != FP8_BLOCK:
        raise ValueError(f"the kernels of arranged experts round groups of {FP8_BLOCK} columns, not of {group}")
    (T, H), E, slots = x.shape, len(experts.w1), ids.shape[1]
    if widened_experts.are_worth_it(experts, ids.numel(), quantise_activations):
        y = widened_experts.widened_expert_outputs(x, ids, weights, experts, swiglu_limit)
    elif experts.arranged:
        y = x.new_empty(T, slots, H)
        fp4_experts.fp4_expert_outputs(
            x, None, None, ids, weights, experts, swiglu_limit, quantise_activations, y, zeros=False
        )
    else:
        y = _outputs(x, None, None, ids, weights, experts, swiglu_limit, quantise_activations, group)
    out = torch.empty(T, H, dtype=torch.float32, device=x.device)
    block_h = min(1024, next_power_of_2(H))
    _combine_kernel[(T, ceil_div(H, block_h))](ids, y, out, experts.first, E, H, SLOTS=slots, BLOCK_H=block_h)
    return out


def expert_outputs(
    x: Tensor, xq: Tensor | None, xs: Tensor | None, ids: Tensor, weights: Tensor, experts: ExpertWeights,
    swiglu_limit: float, quantise: bool, out: Tensor,
) -> Tensor:  # fmt: skip
    """See `reference.expert_outputs`."""
    ids, weights, x = _checked(x, ids, weights, experts)
    if experts.arranged:
        fp4_experts.fp4_expert_outputs(x, xq, xs, ids, weights, experts, swiglu_limit, quantise, out, zeros=True)
        return out
    y = _outputs(x, xq, xs, ids, weights, experts, swiglu_limit, quantise)
    block_h, H, slots = min(1024, next_power_of_2(x.shape[1])), x.shape[1], ids.shape[1]
    _place_kernel[(ids.numel(), ceil_div(H, block_h))](
        ids, y, out, experts.first, len(experts.w1), H, slots, out.stride(0), out.stride(1), BLOCK_H=block_h
    )
    return out


def _checked(x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights) -> tuple[Tensor, Tensor, Tensor]:
    T, H = x.shape
    if experts.arranged and x.dtype != torch.bfloat16:
        raise ValueError(f"arranged FP4 experts take BF16 activations, not {x.dtype}")
    if ids.shape != weights.shape or len(ids) != T or experts.w2.shape[1] != H:
        raise ValueError(
            f"{T} tokens of {H}, ids {tuple(ids.shape)}, weights {tuple(weights.shape)}, w2 of another shape"
        )
    return ids.contiguous(), weights.float().contiguous(), x.contiguous()


def _outputs(
    x: Tensor, xq: Tensor | None, xs: Tensor | None, ids: Tensor, weights: Tensor, experts: ExpertWeights,
    swiglu_limit: float, quantise: bool, group: int = FP8_BLOCK,
) -> Tensor:  # fmt: skip
    """Outputs of the local pairs [P, H]; the others' are not written. xq, xs: see `reference.expert_outputs`."""
    (T, H), (E, MI), slots, fmt = x.shape, experts.w1.shape[:2], ids.shape[1], experts.format
    pairs, start = plan_pairs(ids, experts.first, E)
    tiles = _tiles(T * slots, min(MI, H), experts, x.dtype)
    if xq is None or fmt == "plain":
        xq, xs = _quantise(x, fmt, quantise, group)
    (w1, s1), (w3, s3), (w2, s2) = (
        (_bytes(w, fmt), stored_scale(s))
        for w, s in ((experts.w1, experts.s1), (experts.w3, experts.s3), (experts.w2, experts.s2))
    )
    h = x.new_empty(T * slots, MI)
    _gate_up_kernel[(ceil_div(MI, tiles["BLOCK_N"]), E)](
        xq, xs, w1, w3, s1, s3, weights, pairs, start, h, swiglu_limit, slots, MI, H, *_strides(xq, xs, w1, s1),
        FORMAT=fmt, QUANTISED=xs is not None, **tiles,
    )  # fmt: skip
    hq, hs = _quantise(h, fmt, quantise, group)
    y = x.new_empty(T * slots, H)
    _down_kernel[(ceil_div(H, tiles["BLOCK_N"]), E)](
        hq, hs, w2, s2, pairs, start, y, H, MI, *_strides(hq, hs, w2, s2)[1:],
        FORMAT=fmt, QUANTISED=hs is not None, **tiles,
    )  # fmt: skip
    return y


def _quantise(x: Tensor, fmt: str, quantise: bool, group: int) -> tuple[Tensor, Tensor | None]:
    """The activation as the product takes it: codes and scales, or rounded values for plain weights and MXFP8."""
    if fmt in ("int8", "fp8-channel"):
        if not quantise:
            raise ValueError("weights with a scale for each row take quantised activations")
        return token_quant(x, torch.int8 if fmt == "int8" else torch.float8_e4m3fn)
    if not quantise:
        return x, None
    if fmt == "mxfp8" and group == FP8_BLOCK:
        return mx_act_quant_roundtrip(x), None
    # Products of codes apply one scale to 128 columns; values of other groups are exact in x's type.
    return (act_quant_roundtrip(x, group), None) if fmt == "plain" or group != FP8_BLOCK else act_quant(x)


def _bytes(w: Tensor, fmt: str) -> Tensor:
    """A weight as kernels take it: packed FP4 as bytes."""
    return unit_columns(w.view(torch.uint8) if fmt == "fp4" else w)


def _strides(x: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor | None) -> tuple[int, ...]:
    """Row strides of x and xs, then row and expert strides of w and ws; 0 for what is absent."""
    return (
        x.stride(0), 0 if xs is None else xs.stride(0),
        w.stride(1), w.stride(0), 0 if ws is None else ws.stride(1), 0 if ws is None else ws.stride(0),
    )  # fmt: skip


def _tiles(pairs: int, outputs: int, experts: ExpertWeights, dtype: torch.dtype) -> dict[str, int]:
    """Tile sizes for the mean number of pairs an expert gets; at most one expert a pair has any."""
    count = len(experts.w1)
    mean = min(64, ceil_div(pairs, count))
    shape = tile_shape(mean, outputs * min(pairs, count), experts.format, dtype == torch.float32)
    return dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps"), shape, strict=True))
