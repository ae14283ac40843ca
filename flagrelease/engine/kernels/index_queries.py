"""The indexer's queries of decoding in Triton: rotated, through Hadamard's matrix, rounded to FP4.

Legend: B rows, H index heads, S parts of their weights, D columns of a head, R of them rotated.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, dot
from flagrelease.engine.kernels.row_vectors import fp4_rounded, hadamard_signs, sum_parts

HEADS = 16  # of a program


@early_kernel
def _index_queries_kernel(
    q_ptr: tl.tensor,
    parts_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    y_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    q_row: tl.tensor,
    part_stride: tl.tensor,
    part_row: tl.tensor,
    S: tl.tensor,
    H: tl.tensor,
    root: tl.tensor,
    QUANTISE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
) -> None:
    wait_for_results()
    b = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    position = tl.maximum(tl.load(positions_ptr + b), 0)
    pair = tl.arange(0, D // 2)
    inside = (h < H)[:, None]
    d = tl.arange(0, D)
    x = tl.load(q_ptr + b * q_row + h[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(x, (BLOCK_H, D // 2, 2)))
    turn = pair - (D - R) // 2
    cos = tl.load(cos_ptr + position * (R // 2) + turn, mask=turn >= 0, other=1.0)[None, :]
    sin = tl.load(sin_ptr + position * (R // 2) + turn, mask=turn >= 0, other=0.0)[None, :]
    dtype = y_ptr.dtype.element_ty
    x = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK_H, D))
    x = dot(cast(x, dtype), hadamard_signs(D).to(dtype), tl.zeros((BLOCK_H, D), tl.float32)) * root
    x = cast(x, dtype).to(tl.float32)
    if QUANTISE:
        x = tl.reshape(fp4_rounded(tl.reshape(x, (BLOCK_H * D,)), BLOCK_H * D), (BLOCK_H, D))
    tl.store(y_ptr + (b * H + h[:, None]) * D + d[None, :], cast(x, dtype), mask=inside)
    weights = sum_parts(parts_ptr + b * part_row, h, h < H, part_stride, S)
    tl.store(weights_ptr + b * H + h, weights, mask=h < H)


def index_queries(
    q: Tensor, weights: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, quantise: bool
) -> tuple[Tensor, Tensor]:
    """See `reference.index_queries`. Heads have a power of two columns, 16 to 256, and are contiguous."""
    B, H, D = q.shape
    if D & (D - 1) or not 16 <= D <= 256 or q.stride(2) != 1 or q.stride(1) != D or weights.stride(-1) != 1:
        raise ValueError(f"queries {tuple(q.shape)} with strides {q.stride()}, weights with {weights.stride()}")
    y = torch.empty(B, H, D, dtype=q.dtype, device=q.device)
    total = torch.empty(B, H, dtype=torch.float32, device=q.device)
    _index_queries_kernel[(B, triton.cdiv(H, HEADS))](
        q, weights, cos, sin, positions, y, total, q.stride(0), weights.stride(0), weights.stride(1), len(weights), H,
        D**-0.5, QUANTISE=quantise, BLOCK_H=HEADS, D=D, R=2 * cos.shape[1],
    )  # fmt: skip
    return y, total
