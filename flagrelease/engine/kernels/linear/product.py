"""The inner loop of every matrix product: a tile of x W^T for weights stored plain, as FP8 or as FP4.

Legend: BLOCK_M rows of x, BLOCK_N rows of w, K columns of both. x, w, xs, ws are vectors of pointers to the starts of
rows of values and of scales, so that a caller may take its rows from anywhere (the experts' kernel gathers them). With
FP8 ws is one pointer: BLOCK_N divides 128, and the rows of w begin at a multiple of it, so that they share a scale.

| FORMAT | w | ws of output n | x with QUANTISED (E4M3, one scale a step) | other x (BF16, FP32) | step |
|---|---|---|---|---|---|
| plain | BF16, FP32 | none | - | FP32 product if either is | BLOCK_K |
| fp8 | E4M3 | row n/128 of all, one a step | FP8 product | w widened to x's type | 128 |
| fp4 | two codes a byte, even column low | row n, four a step | both widened to BF16 | w widened to x's type | 128 |
| int8 | INT8 | row n, one for all | INT8, INT32 sums, one scale for all | - | 128 |
| fp8-channel | E4M3 | row n, one for all | FP8 product, one scale for all | - | 128 |
| mxfp8 | E4M3 | row n, four a step | - | w widened to x's type | 128 |

FP4 times a power of two is exact in BF16 (scale codes 0 to 252), and so is E4M3: BF16 products lose nothing. QUANTISED
may also be FP16 x for FP8 weights: one instruction widens two of them to FP16, where BF16 takes four. Even and odd
columns are multiplied apart: x is split, which is smaller than the weight that would have to be interleaved.

WEIGHTS_LEFT makes the weight the left operand (plain and fp8). Hopper's matrix unit takes 64 rows of that from shared
memory, FP8 as it is stored, and 8 to 256 rows of the right one: with few rows of x no thread touches a weight.
"""
# ruff: noqa: N803  (dimensions of the legend)

import triton.language as tl

from flagrelease.engine.kernels.interpreter import dot, jit
from flagrelease.engine.kernels.linear.row_product import mx_product, row_product
from flagrelease.engine.kernels.quantisation.codes import e2m1_value, scale_value
from flagrelease.engine.kernels.quantisation.e4m3 import numbers


@jit
def product(
    x: tl.tensor,
    xs: tl.tensor,
    x_inside: tl.tensor,
    w: tl.tensor,
    ws: tl.tensor,
    w_inside: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    K: tl.tensor,
    FORMAT: tl.constexpr,
    QUANTISED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WEIGHTS_LEFT: tl.constexpr,
) -> tl.tensor:
    """FP32 [BLOCK_M, BLOCK_N] over the columns begin (a multiple of the step) to end; rows outside are zero.

    The format's constraints are the caller's to check. The last three formats are taken whole: 0 to K, weights right.
    """
    if FORMAT == "int8":
        return row_product(x, xs, x_inside, w, ws, w_inside, K, True, BLOCK_M, BLOCK_N)
    elif FORMAT == "fp8-channel":  # noqa: RET505 - Triton compiles what follows a return
        return row_product(x, xs, x_inside, w, ws, w_inside, K, False, BLOCK_M, BLOCK_N)
    elif FORMAT == "mxfp8":
        return mx_product(x, x_inside, w, ws, w_inside, K, BLOCK_M, BLOCK_N)
    else:
        return _block_product(
            x, xs, x_inside, w, ws, w_inside, begin, end, K, FORMAT, QUANTISED, BLOCK_M, BLOCK_N, BLOCK_K, WEIGHTS_LEFT
        )


@jit
def _block_product(
    x: tl.tensor,
    xs: tl.tensor,
    x_inside: tl.tensor,
    w: tl.tensor,
    ws: tl.tensor,
    w_inside: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    K: tl.tensor,
    FORMAT: tl.constexpr,
    QUANTISED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WEIGHTS_LEFT: tl.constexpr,
) -> tl.tensor:
    """`product` of plain weights and of those with scales for blocks of a row."""
    rows: tl.constexpr = BLOCK_N if WEIGHTS_LEFT else BLOCK_M
    columns: tl.constexpr = BLOCK_M if WEIGHTS_LEFT else BLOCK_N
    acc = tl.zeros((rows, columns), tl.float32)
    if FORMAT == "plain":
        for start in range(begin, end, BLOCK_K):
            acc = _plain_step(acc, x, x_inside, w, w_inside, start, K, BLOCK_K, WEIGHTS_LEFT)
    else:
        # Scales go to registers, which Triton does not fill ahead of time, so that is done here: one step ahead.
        x_scale, w_scale = _scales(xs, x_inside, ws, w_inside, begin, K, FORMAT, QUANTISED, BLOCK_M, BLOCK_N)
        for start in range(begin, end, 128):
            next_x, next_w = _scales(xs, x_inside, ws, w_inside, start + 128, K, FORMAT, QUANTISED, BLOCK_M, BLOCK_N)
            zero = tl.zeros((rows, columns), tl.float32)
            if FORMAT == "fp8":
                y = _fp8_step(zero, x, x_inside, w, w_inside, start, K, WEIGHTS_LEFT)
                scale = x_scale * scale_value(w_scale)
                acc += y * (scale[None, :] if WEIGHTS_LEFT else scale[:, None])
            else:
                y = _fp4_step(zero, x, x_inside, w, scale_value(w_scale), w_inside, start, K, BLOCK_M, BLOCK_N)
                acc += y * x_scale[:, None]
            x_scale, w_scale = next_x, next_w
    if WEIGHTS_LEFT:
        acc = tl.trans(acc)
    return acc


@jit
def _scales(
    xs: tl.tensor,
    x_inside: tl.tensor,
    ws: tl.tensor,
    w_inside: tl.tensor,
    start: tl.tensor,
    K: tl.tensor,
    FORMAT: tl.constexpr,
    QUANTISED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """x's scales of 128 columns [BLOCK_M], and the weight's as they are stored: FP8 one, FP4 [4, BLOCK_N]."""
    x_scale = tl.full((BLOCK_M,), 1.0, tl.float32)
    last = tl.minimum(start, K - 1) // 128  # beyond the end any scale will do
    if QUANTISED:
        x_scale = tl.load(xs + last, mask=x_inside, other=0.0)
    if FORMAT == "fp8":
        w_scale = tl.load(ws + last)
    else:
        group = start // 32 + tl.arange(0, 4)
        w_scale = tl.load(ws[None, :] + group[:, None], mask=w_inside[None, :] & (group * 32 < K)[:, None], other=0)
    return x_scale, w_scale


@jit
def _plain_step(
    acc: tl.tensor,
    x: tl.tensor,
    x_inside: tl.tensor,
    w: tl.tensor,
    w_inside: tl.tensor,
    start: tl.tensor,
    K: tl.tensor,
    BLOCK_K: tl.constexpr,
    WEIGHTS_LEFT: tl.constexpr,
) -> tl.tensor:
    k = start + tl.arange(0, BLOCK_K)
    a = tl.load(x[:, None] + k[None, :], mask=x_inside[:, None] & (k < K)[None, :], other=0.0)
    b = tl.load(w[:, None] + k[None, :], mask=w_inside[:, None] & (k < K)[None, :], other=0.0)
    if a.dtype != b.dtype:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return _multiplied(a, b, acc, WEIGHTS_LEFT)


@jit
def _fp8_step(
    acc: tl.tensor,
    x: tl.tensor,
    x_inside: tl.tensor,
    w: tl.tensor,
    w_inside: tl.tensor,
    start: tl.tensor,
    K: tl.tensor,
    WEIGHTS_LEFT: tl.constexpr,
) -> tl.tensor:
    k = start + tl.arange(0, 128)
    a = numbers(tl.load(x[:, None] + k[None, :], mask=x_inside[:, None] & (k < K)[None, :], other=0.0), tl.bfloat16)
    b = numbers(tl.load(w[:, None] + k[None, :], mask=w_inside[:, None] & (k < K)[None, :], other=0.0), a.dtype)
    if a.dtype == tl.float16:
        b = b.to(tl.float16)
    elif a.dtype != b.dtype:
        b = b.to(tl.float32).to(a.dtype)
    return _multiplied(a, b, acc, WEIGHTS_LEFT)


@jit
def _multiplied(x: tl.tensor, w: tl.tensor, acc: tl.tensor, WEIGHTS_LEFT: tl.constexpr) -> tl.tensor:
    """acc + x w^T, or acc + w x^T."""
    if WEIGHTS_LEFT:
        return dot(w, tl.trans(x), acc)
    else:  # noqa: RET505 - Triton compiles what follows a return
        return dot(x, tl.trans(w), acc)


@jit
def _fp4_step(
    acc: tl.tensor,
    x: tl.tensor,
    x_inside: tl.tensor,
    w: tl.tensor,
    scale: tl.tensor,
    w_inside: tl.tensor,
    start: tl.tensor,
    K: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    k = start + tl.arange(0, 128)
    pair = start // 2 + tl.arange(0, 64)
    a = numbers(tl.load(x[:, None] + k[None, :], mask=x_inside[:, None] & (k < K)[None, :], other=0.0), tl.bfloat16)
    codes = tl.load(w[None, :] + pair[:, None], mask=w_inside[None, :] & (pair * 2 < K)[:, None], other=0).to(tl.int32)
    if a.dtype == tl.float8e4nv:  # BF16 holds E4M3 exactly, and every chip multiplies it
        a = a.to(tl.float32).to(tl.bfloat16)
    even, odd = tl.split(tl.reshape(a, (BLOCK_M, 64, 2)))
    scale = tl.broadcast_to(scale[:, None, :], (4, 16, BLOCK_N)).reshape(64, BLOCK_N)
    acc = dot(even, (e2m1_value(codes & 15) * scale).to(even.dtype), acc)
    return dot(odd, (e2m1_value((codes >> 4) & 15) * scale).to(odd.dtype), acc)
