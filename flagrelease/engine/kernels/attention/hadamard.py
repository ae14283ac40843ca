"""Hadamard transform in Triton: a product with Sylvester's matrix, whose signs are made on the fly.

Legend: R rows, D columns. H[i, j] is -1 where i & j has an odd number of ones. Products with +-1 are exact in any
dtype, so the matrix unit adds in FP32 what a butterfly would.
"""
# ruff: noqa: N803  (dimensions of the legend)

import math

import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, dot
from flagrelease.engine.kernels.layout import ceil_div, output, rows

LARGEST = 256  # columns; the matrix is held whole (V4 has 128)


@early_kernel
def _hadamard_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    x_stride: tl.tensor,
    R: tl.tensor,
    scale: tl.tensor,
    BLOCK_R: tl.constexpr,
    D: tl.constexpr,
) -> None:
    wait_for_results()
    r = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    d = tl.arange(0, D)
    x = tl.load(x_ptr + r * x_stride + d[None, :], mask=r < R, other=0.0)
    parity = d[:, None] & d[None, :]
    parity ^= parity >> 4
    parity ^= parity >> 2
    parity ^= parity >> 1
    signs = (1 - 2 * (parity & 1)).to(tl.float32).to(x.dtype)
    y = dot(x, signs, tl.zeros((BLOCK_R, D), tl.float32)) * scale
    tl.store(y_ptr + r * D + d[None, :], cast(y, y_ptr.dtype.element_ty), mask=r < R)


def hadamard(x: Tensor) -> Tensor:
    """See `reference.hadamard`. 16 to 256 columns."""
    d = x.shape[-1]
    if d & (d - 1) or not 16 <= d <= LARGEST:
        raise ValueError(f"the Hadamard kernel takes a power of two from 16 to {LARGEST} columns, not {d}")
    y, x_rows = output(x, None), rows(x)
    block_r = 16
    _hadamard_kernel[(ceil_div(len(x_rows), block_r),)](
        x_rows, y, x_rows.stride(0), len(x_rows), math.pow(d, -0.5), BLOCK_R=block_r, D=d
    )
    return y
