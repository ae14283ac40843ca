"""Tiles of x W^T for the formats of serving stacks: INT8 and FP8 with a scale for each row, and MXFP8.

Legend as in `product`: vectors of pointers to rows of values and of scales, BLOCK_M rows of x, BLOCK_N of w, K columns,
128 a step.
"""
# ruff: noqa: N803  (dimensions of the legend)

import triton.language as tl

from flagrelease.engine.kernels.interpreter import dot, jit
from flagrelease.engine.kernels.quantisation.codes import scale_value
from flagrelease.engine.kernels.quantisation.e4m3 import numbers


@jit
def row_product(
    x: tl.tensor,
    xs: tl.tensor,
    x_inside: tl.tensor,
    w: tl.tensor,
    ws: tl.tensor,
    w_inside: tl.tensor,
    K: tl.tensor,
    INTEGER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """`reference.row_linear` in FP32 [BLOCK_M, BLOCK_N]; xs and ws point to one scale a row. INT8 sums are INT32."""
    if INTEGER:
        sums = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
        for start in range(0, K, 128):
            a, b = _codes(x, x_inside, start, K), _codes(w, w_inside, start, K)
            sums = tl.dot(a, tl.trans(b), sums, out_dtype=tl.int32)
        acc = sums.to(tl.float32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        zero = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, K, 128):
            a, b = _codes(x, x_inside, start, K), _codes(w, w_inside, start, K)
            # Hopper's matrix unit adds FP8 products with 14 bits; every 128 columns they are added up in FP32.
            acc += dot(a, tl.trans(b), zero)
    acc = acc * tl.load(xs, mask=x_inside, other=0.0)[:, None]
    return acc * tl.load(ws, mask=w_inside, other=0.0)[None, :]


@jit
def _codes(x: tl.tensor, inside: tl.tensor, start: tl.tensor, K: tl.tensor) -> tl.tensor:
    k = start + tl.arange(0, 128)
    codes = tl.load(x[:, None] + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0)
    return numbers(codes, tl.bfloat16)


@jit
def mx_product(
    x: tl.tensor,
    x_inside: tl.tensor,
    w: tl.tensor,
    ws: tl.tensor,
    w_inside: tl.tensor,
    K: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """`reference.mx_linear` in FP32 [BLOCK_M, BLOCK_N]: values times codes, which are exact in x's type with scales."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, 128):
        k, group = start + tl.arange(0, 128), start // 32 + tl.arange(0, 4)
        a = tl.load(x[:, None] + k[None, :], mask=x_inside[:, None] & (k < K)[None, :], other=0.0)
        byte = tl.load(ws[:, None] + group[None, :], mask=w_inside[:, None] & (group * 32 < K)[None, :], other=127)
        scale = tl.broadcast_to(scale_value(byte)[:, :, None], (BLOCK_N, 4, 32)).reshape(BLOCK_N, 128)
        b = _codes(w, w_inside, start, K).to(tl.float32) * scale
        acc = dot(a, tl.trans(b.to(a.dtype)), acc)
    return acc
