"""The routed experts of FP4 weights for many tokens, in Triton: decoded once to FP8, and multiplied at FP8's rate.

Where an expert has hundreds of tokens, a product that decodes its weights for each tile of them decodes them several
times, and to BF16, for every 32 columns have a scale of their own. Here a few experts at a time are written as FP8 with
a scale for 128 x 128: an FP4 code times a power of two down to 2^-11 is exact in E4M3 (`ExpertWeights.even`).

Legend: T tokens, P pairs (a token and one of its experts), E local experts, G of them at a time, H hidden size,
MI expert width, N rows and K columns of a weight.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.experts.expert_plan import plan_pairs
from flagrelease.engine.kernels.experts.swiglu import clamped_swiglu
from flagrelease.engine.kernels.interpreter import cast, dot, jit
from flagrelease.engine.kernels.layout import ceil_div
from flagrelease.engine.kernels.quantisation.act_quant import act_quant
from flagrelease.engine.kernels.quantisation.codes import scale_value
from flagrelease.engine.kernels.quantisation.e4m3 import numbers
from flagrelease.engine.kernels.quantisation.fp4_scaled import fp4_scaled_operands
from flagrelease.engine.kernels.targets import TARGET
from flagrelease.engine.kernels.weights import ExpertWeights

FEWEST = 160  # pairs of an expert on average, from which decoding it once pays: 2 to 3 ms a layer of V4-Flash
AT_ONCE = 32  # experts that are held in FP8: 0.8 GB of V4-Flash
TILE = {"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 8, "num_stages": TARGET.sizes.stages(4, 2 * 128 * 128)}


@jit
def _most(scales: tl.tensor) -> tl.tensor:
    """The largest byte of all int32 `scales`."""
    upper = tl.maximum((scales >> 16) & 255, (scales >> 24) & 255)
    return tl.max(tl.maximum(tl.maximum(scales & 255, (scales >> 8) & 255), upper), axis=0)


@jit
def _exponents(scales: tl.tensor, most: tl.tensor) -> tl.tensor:
    """Of each byte of int32 `scales`: how far it is above 2^-12 of the largest, all in one int32 again."""
    return scales - (most - 12) * 0x01010101


@early_kernel
def _widen_kernel(
    w_ptr: tl.tensor,
    s_ptr: tl.tensor,
    w3_from_w1: tl.tensor,
    s3_from_s1: tl.tensor,
    y_ptr: tl.tensor,
    ys_ptr: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    w_expert: tl.tensor,
    s_expert: tl.tensor,
    PAIRED: tl.constexpr,
    PTX: tl.constexpr,
) -> None:
    """128 rows and 256 columns of an expert; PAIRED: the rows are w1's and w3's in turn."""
    wait_for_results()
    e = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    w_at, s_at = row * (K // 8), row * (K // 128)
    if PAIRED:
        w_at = row // 2 * (K // 8) + row % 2 * w3_from_w1
        s_at = row // 2 * (K // 128) + row % 2 * s3_from_s1
    words = tl.load(w_ptr + e * w_expert + (w_at + tl.program_id(1) * 32)[:, None] + tl.arange(0, 32)[None, :])
    s = s_ptr + e * s_expert + s_at + tl.program_id(1) * 2
    low, high = tl.load(s), tl.load(s + 1)
    most_low, most_high = _most(low), _most(high)
    w0, w1, w2, w3, w4, w5, w6, w7 = fp4_scaled_operands(
        words, _exponents(low, most_low), _exponents(high, most_high), 128, PTX, y_ptr.dtype.element_ty
    )
    y = y_ptr + (e * N + row)[:, None] * K + tl.program_id(1) * 256 + tl.arange(0, 32)[None, :]
    tl.store(y, w0)
    tl.store(y + 32, w1)
    tl.store(y + 64, w2)
    tl.store(y + 96, w3)
    tl.store(y + 128, w4)
    tl.store(y + 160, w5)
    tl.store(y + 192, w6)
    tl.store(y + 224, w7)
    ys = ys_ptr + (e * (N // 128) + tl.program_id(0)) * (K // 128) + tl.program_id(1) * 2
    tl.store(ys, (most_low - 6).to(tl.uint8))
    tl.store(ys + 1, (most_high - 6).to(tl.uint8))


@early_kernel
def _product_kernel(
    x_ptr: tl.tensor,
    xs_ptr: tl.tensor,
    w_ptr: tl.tensor,
    ws_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    pairs_ptr: tl.tensor,
    start_ptr: tl.tensor,
    y_ptr: tl.tensor,
    limit: tl.tensor,
    slots: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """GATED: y[sorted pair] = swiglu(w1 x, w3 x) * routing weight; else y[pair] = w x[sorted pair]."""
    wait_for_results()
    e = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k, groups = tl.arange(0, 128), K // 128
    begin, end = tl.load(start_ptr + e), tl.load(start_ptr + e + 1)
    w = w_ptr + e * N * K + n[:, None] * K + k[None, :]
    ws = ws_ptr + (e * (N // 128) + tl.program_id(0) * BLOCK_N // 128) * groups
    for m0 in range(begin, end, BLOCK_M):
        m = m0 + tl.arange(0, BLOCK_M)
        inside = m < end
        pair = tl.load(pairs_ptr + m, mask=inside, other=0)
        source = m.to(tl.int64)
        if GATED:
            source = (pair // slots).to(tl.int64)
        x = x_ptr + (source * K)[:, None] + k[None, :]
        xs = xs_ptr + source * groups
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        # Scales go to registers, which Triton does not fill ahead of time, so that is done here: one step ahead.
        x_scale, w_scale = tl.load(xs, mask=inside, other=0.0), tl.load(ws)
        for group in range(groups):
            after = tl.minimum(group + 1, groups - 1)
            next_x, next_w = tl.load(xs + after, mask=inside, other=0.0), tl.load(ws + after)
            a = numbers(tl.load(x + group * 128, mask=inside[:, None], other=0.0), tl.bfloat16)
            b = numbers(tl.load(w + group * 128), tl.bfloat16)
            y = dot(a, tl.trans(b), tl.zeros((BLOCK_M, BLOCK_N), tl.float32))
            acc += y * (x_scale * scale_value(w_scale))[:, None]
            x_scale, w_scale = next_x, next_w
        dtype = y_ptr.dtype.element_ty
        if GATED:
            gate, up = tl.split(tl.reshape(acc, (BLOCK_M, BLOCK_N // 2, 2)))
            gate, up = cast(gate, dtype).to(tl.float32), cast(up, dtype).to(tl.float32)
            h = clamped_swiglu(gate, up, limit) * tl.load(weights_ptr + pair, mask=inside, other=0.0)[:, None]
            out = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
            at = y_ptr + (m.to(tl.int64) * (N // 2))[:, None] + out[None, :]
            tl.store(at, cast(h, dtype), mask=inside[:, None])
        else:
            at = y_ptr + (pair.to(tl.int64) * N)[:, None] + n[None, :]
            tl.store(at, cast(acc, dtype), mask=inside[:, None])


def are_worth_it(experts: ExpertWeights, pairs: int, quantise: bool) -> bool:
    """Whether experts of so many pairs together are to be widened."""
    return experts.arranged and experts.even and quantise and pairs >= FEWEST * len(experts.w1)


def widened_expert_outputs(x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights, limit: float) -> Tensor:
    """Outputs of the local pairs, [P, H]; the others' are not written. The experts are arranged and even, x is BF16."""
    (E, MI), slots, H, P = experts.w1.shape[:2], ids.shape[1], x.shape[1], ids.numel()
    pairs, start = plan_pairs(ids, experts.first, E)
    h, y = x.new_empty(P, MI), x.new_empty(P, H)
    first, second = (experts.w1, experts.s1, experts.w3, experts.s3), (experts.w2, experts.s2)
    for given, out, held in ((x, h, first), (h, y, second)):
        codes, code_scales = act_quant(given)
        for e in range(0, E, AT_ONCE):
            some = slice(e, e + AT_ONCE)
            w, s = widen(*(None if t is None else t[some] for t in held))
            _product_kernel[(ceil_div(w.shape[1], TILE["BLOCK_N"]), len(w))](
                codes, code_scales, w, s, weights, pairs, start[e:], out, limit, slots, *w.shape[1:],
                GATED=given is x, **TILE,
            )  # fmt: skip
    return y


def widen(
    w: Tensor | None, s: Tensor | None, w3: Tensor | None = None, s3: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Arranged codes [G, N, K/2] and their scales as E4M3 [G, N, K] and E8M0 bytes [G, N/128, K/128].

    With w3 and s3, which lie as far from w and s in all experts, its rows and those of w in turn: [G, 2N, K].
    """
    assert w is not None
    assert s is not None
    words, scales = w.view(torch.int32), s.view(torch.int32)
    paired = w3 is not None and s3 is not None
    N, K = w.shape[1] * (2 if paired else 1), w.shape[2] * 2
    y = torch.empty(len(w), N, K, dtype=torch.float8_e4m3fn, device=w.device)
    ys = torch.empty(len(w), N // 128, K // 128, dtype=torch.uint8, device=w.device)
    _widen_kernel[(N // 128, K // 256, len(w))](
        words, scales, _apart(w, w3), _apart(s, s3), y, ys, N, K, words.stride(0), scales.stride(0),
        PAIRED=paired, PTX=TARGET.ptx, num_warps=8,
    )  # fmt: skip
    return y, ys


def _apart(a: Tensor, b: Tensor | None) -> int:
    """Words of 32 bits from `a` to `b`, which lie in one tensor, as the loader puts them."""
    return 0 if b is None else (b.data_ptr() - a.data_ptr()) // 4
