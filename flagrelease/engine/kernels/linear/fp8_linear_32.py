"""V4.1's linears in Triton: FP8 weights in tiles of 32 x 32, each with a power of two.

A program does 32 outputs, which share a row of scales: so x takes the scales, exactly, and the codes go to the matrix
unit as they are. Few rows leave few programs: then K is cut into parts, which are added up behind.
Legend: M rows of activations, N outputs, K inputs.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, dot
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, rows, unit_columns
from flagrelease.engine.kernels.linear.linear import linear
from flagrelease.engine.kernels.quantisation.codes import scale_value
from flagrelease.engine.kernels.quantisation.e4m3 import numbers
from flagrelease.engine.kernels.quantisation.round_parts import round_parts
from flagrelease.engine.kernels.reference.v41 import check_tiles
from flagrelease.engine.kernels.targets import TARGET
from flagrelease.engine.kernels.weights import FP8_TILE

MANY_ROWS = 512  # from here on the weight is decoded once, and not in every tile
MOST_ROWS = 64  # of a program
STEP = 128  # columns
MOST_PARTS = 8


@early_kernel
def _tiles_kernel(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    ws_ptr: tl.tensor,
    y_ptr: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    x_row: tl.tensor,
    w_row: tl.tensor,
    ws_row: tl.tensor,
    per_part: tl.tensor,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> None:
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * TILE + tl.arange(0, TILE)).to(tl.int64)
    GROUPS: tl.constexpr = STEP // TILE
    begin = tl.program_id(2) * per_part
    end = tl.minimum(begin + per_part, K)
    x, w, ws = x_ptr + m[:, None] * x_row, w_ptr + n[:, None] * w_row, ws_ptr + tl.program_id(1) * ws_row
    wait_for_results()
    acc = tl.zeros((BLOCK_M, TILE), tl.float32)
    for start in range(begin, end, STEP):
        k, group = start + tl.arange(0, STEP), start // TILE + tl.arange(0, GROUPS)
        scale = scale_value(tl.load(ws + group, mask=group * TILE < K, other=127))
        scale = tl.reshape(tl.broadcast_to(scale[:, None], (GROUPS, TILE)), (STEP,))
        a = tl.load(x + k[None, :], mask=(m < M)[:, None] & (k < end)[None, :], other=0.0)
        b = tl.load(w + k[None, :], mask=(n < N)[:, None] & (k < end)[None, :], other=0.0)
        b = numbers(b, tl.bfloat16).to(tl.float32)
        acc = dot(cast(a.to(tl.float32) * scale[None, :], a.dtype), tl.trans(b.to(a.dtype)), acc)
    y = y_ptr + (tl.program_id(2).to(tl.int64) * M + m[:, None]) * N + n[None, :]
    tl.store(y, cast(acc, y_ptr.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@early_kernel
def _decode_kernel(
    w_ptr: tl.tensor,
    ws_ptr: tl.tensor,
    y_ptr: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    w_row: tl.tensor,
    ws_row: tl.tensor,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    """TILE rows and STEP columns of the weight in y's dtype."""
    n = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    k = tl.program_id(1) * STEP + tl.arange(0, STEP)
    inside = (n < N)[:, None] & (k < K)[None, :]
    wait_for_results()
    scale = scale_value(tl.load(ws_ptr + tl.program_id(0) * ws_row + k // TILE, mask=k < K, other=127))
    w = numbers(tl.load(w_ptr + n[:, None] * w_row + k[None, :], mask=inside, other=0.0), tl.bfloat16).to(tl.float32)
    tl.store(y_ptr + n[:, None] * K + k[None, :], cast(w * scale[None, :], y_ptr.dtype.element_ty), mask=inside)


def fp8_linear_32(x: Tensor, w: Tensor, ws: Tensor, out_dtype: torch.dtype) -> Tensor:
    """See `reference.v41.fp8_linear_32`. BF16 or FP32 activations; their products with scales stay in their range."""
    check_tiles(x, w, ws)
    x_rows, w, scales = rows(x), unit_columns(w), unit_columns(ws.view(torch.uint8))
    M, (N, K) = len(x_rows), w.shape
    if M >= MANY_ROWS:
        plain = torch.empty(N, K, dtype=x.dtype, device=x.device)
        _decode_kernel[(ceil_div(N, FP8_TILE), ceil_div(K, STEP))](
            w, scales, plain, N, K, w.stride(0), scales.stride(0), TILE=FP8_TILE, STEP=STEP
        )
        return linear(x, plain, out_dtype)
    block_m = min(MOST_ROWS, max(16, next_power_of_2(M)))
    programs = ceil_div(M, block_m) * ceil_div(N, FP8_TILE)
    parts = max(1, min(MOST_PARTS, 2 * TARGET.sizes.filled // programs, ceil_div(K, 4 * STEP)))
    per_part = ceil_div(ceil_div(K, parts), STEP) * STEP
    parts = ceil_div(K, per_part)
    y = torch.empty(parts, M, N, dtype=out_dtype if parts == 1 else torch.float32, device=x.device)
    _tiles_kernel[(ceil_div(M, block_m), ceil_div(N, FP8_TILE), parts)](
        x_rows, w, scales, y, M, N, K, x_rows.stride(0), w.stride(0), scales.stride(0), per_part,
        TILE=FP8_TILE, STEP=STEP, BLOCK_M=block_m, num_warps=4, num_stages=4 if x.element_size() == 2 else 2,
    )  # fmt: skip
    whole = y[0] if parts == 1 else round_parts(y, out_dtype, False)[0]
    return whole.view(*x.shape[:-1], N)
