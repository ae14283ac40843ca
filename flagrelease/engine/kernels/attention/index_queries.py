"""The indexer's queries of decoding in Triton: rotated, through Hadamard's matrix, rounded to FP4.

Legend: B rows, H index heads, D columns of a head, R of them rotated.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, dot
from flagrelease.engine.kernels.layout import ceil_div, check_positions
from flagrelease.engine.kernels.row_vectors import fp4_rounded, hadamard_signs

HEADS = 16  # of a program


@early_kernel
def _index_queries_kernel(
    q_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    y_ptr: tl.tensor,
    q_row: tl.tensor,
    H: tl.tensor,
    root: tl.tensor,
    QUANTISE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
) -> None:
    b = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    dtype = y_ptr.dtype.element_ty
    signs = hadamard_signs(D).to(dtype)
    position = tl.maximum(tl.load(positions_ptr + b), 0)  # given to the step, nobody's result
    turn = tl.arange(0, D // 2) - (D - R) // 2
    cos = tl.load(cos_ptr + position * (R // 2) + turn, mask=turn >= 0, other=1.0)[None, :]
    sin = tl.load(sin_ptr + position * (R // 2) + turn, mask=turn >= 0, other=0.0)[None, :]
    wait_for_results()
    inside = (h < H)[:, None]
    d = tl.arange(0, D)
    x = tl.load(q_ptr + b * q_row + h[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(x, (BLOCK_H, D // 2, 2)))
    x = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK_H, D))
    x = dot(cast(x, dtype), signs, tl.zeros((BLOCK_H, D), tl.float32)) * root
    x = cast(x, dtype).to(tl.float32)
    if QUANTISE:
        x = tl.reshape(fp4_rounded(tl.reshape(x, (BLOCK_H * D,)), BLOCK_H * D), (BLOCK_H, D))
    tl.store(y_ptr + (b * H + h[:, None]) * D + d[None, :], cast(x, dtype), mask=inside)


def index_queries(q: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, quantise: bool) -> Tensor:
    """See `reference.index_queries`. Heads have a power of two columns, 16 to 256, and are contiguous."""
    B, H, D = q.shape
    check_positions(positions, B)
    if D & (D - 1) or not 16 <= D <= 256 or q.stride(2) != 1 or q.stride(1) != D:
        raise ValueError(f"queries {tuple(q.shape)} with strides {q.stride()}")
    y = torch.empty(B, H, D, dtype=q.dtype, device=q.device)
    _index_queries_kernel[(B, ceil_div(H, HEADS))](
        q, cos, sin, positions, y, q.stride(0), H, D**-0.5, QUANTISE=quantise, BLOCK_H=HEADS, D=D, R=2 * cos.shape[1],
        num_warps=8,
    )  # fmt: skip
    return y
