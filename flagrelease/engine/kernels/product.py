"""The inner loop of every matrix product: a tile of x W^T for weights stored plain, as FP8 or as FP4.

Legend: BLOCK_M rows of x, BLOCK_N rows of w, K columns of both. x, w, xs, ws are vectors of pointers to the starts of
rows of values and of scales, so that a caller may take its rows from anywhere (the experts' kernel gathers them).

| FORMAT | w | ws of output n | x with QUANTISED (E4M3, one scale a step) | other x (BF16, FP32) | step |
|---|---|---|---|---|---|
| plain | BF16, FP32 | none | - | FP32 product if either is | BLOCK_K |
| fp8 | E4M3 | row n/128, one a step | FP8 product | w widened to x's type | 128 |
| fp4 | two codes a byte, even column low | row n, four a step | both widened to BF16 | w widened to x's type | 128 |

FP4 times a power of two is exact in BF16 (scale codes 0 to 252), and so is E4M3: BF16 products lose nothing. Even and
odd columns are multiplied apart, which spares an interleave that Triton before 3.5 gets wrong.
"""
# ruff: noqa: N803  (dimensions of the legend)

import triton.language as tl

from flagrelease.engine.kernels.codes import e2m1_value, scale_value
from flagrelease.engine.kernels.interpreter import dot, jit


@jit
def product(
    x: tl.tensor,
    xs: tl.tensor,
    x_inside: tl.tensor,
    w: tl.tensor,
    ws: tl.tensor,
    w_inside: tl.tensor,
    K: tl.tensor,
    FORMAT: tl.constexpr,
    QUANTISED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """FP32 [BLOCK_M, BLOCK_N]; rows outside are zero. The format's constraints are the caller's to check."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if FORMAT == "plain":
        for start in range(0, K, BLOCK_K):
            acc = _plain_step(acc, x, x_inside, w, w_inside, start, K, BLOCK_K)
    else:
        for start in range(0, K, 128):
            zero = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            if FORMAT == "fp8":
                scale = scale_value(tl.load(ws + start // 128, mask=w_inside, other=0))
                part = _fp8_step(zero, x, x_inside, w, w_inside, start, K) * scale[None, :]
            else:
                part = _fp4_step(zero, x, x_inside, w, ws, w_inside, start, K)
            if QUANTISED:
                part *= tl.load(xs + start // 128, mask=x_inside, other=0.0)[:, None]
            acc += part
    return acc


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
) -> tl.tensor:
    k = start + tl.arange(0, BLOCK_K)
    a = tl.load(x[:, None] + k[None, :], mask=x_inside[:, None] & (k < K)[None, :], other=0.0)
    b = tl.load(w[None, :] + k[:, None], mask=w_inside[None, :] & (k < K)[:, None], other=0.0)
    if a.dtype == b.dtype:
        return dot(a, b, acc)
    return dot(a.to(tl.float32), b.to(tl.float32), acc)


@jit
def _fp8_step(
    acc: tl.tensor,
    x: tl.tensor,
    x_inside: tl.tensor,
    w: tl.tensor,
    w_inside: tl.tensor,
    start: tl.tensor,
    K: tl.tensor,
) -> tl.tensor:
    k = start + tl.arange(0, 128)
    a = tl.load(x[:, None] + k[None, :], mask=x_inside[:, None] & (k < K)[None, :], other=0.0)
    b = tl.load(w[None, :] + k[:, None], mask=w_inside[None, :] & (k < K)[:, None], other=0.0)
    if a.dtype == b.dtype:
        return dot(a, b, acc)
    return dot(a, b.to(tl.float32).to(a.dtype), acc)


@jit
def _fp4_step(
    acc: tl.tensor,
    x: tl.tensor,
    x_inside: tl.tensor,
    w: tl.tensor,
    ws: tl.tensor,
    w_inside: tl.tensor,
    start: tl.tensor,
    K: tl.tensor,
) -> tl.tensor:
    pair = start // 2 + tl.arange(0, 64)
    k_inside = pair * 2 < K
    b_inside = w_inside[None, :] & k_inside[:, None]
    codes = tl.load(w[None, :] + pair[:, None], mask=b_inside, other=0).to(tl.int32)
    scale = scale_value(tl.load(ws[None, :] + (pair // 16)[:, None], mask=b_inside, other=0))
    a_inside = x_inside[:, None] & k_inside[None, :]
    even = _wide(tl.load(x[:, None] + 2 * pair[None, :], mask=a_inside, other=0.0))
    odd = _wide(tl.load(x[:, None] + 2 * pair[None, :] + 1, mask=a_inside, other=0.0))
    acc = dot(even, (e2m1_value(codes & 15) * scale).to(even.dtype), acc)
    return dot(odd, (e2m1_value((codes >> 4) & 15) * scale).to(odd.dtype), acc)


@jit
def _wide(x: tl.tensor) -> tl.tensor:
    """E4M3 as BF16 (exact), which has a matrix unit on every chip; other types as they are."""
    if x.dtype == tl.float8e4nv:
        x = x.to(tl.float32).to(tl.bfloat16)
    return x
