"""Rows of Engram's tables fetched and decoded, in Triton. Legend: D columns of a row, GROUP that share a scale.

The table may lie in pinned memory of the host: the kernel reads the rows through the pointer, over the bus, and nothing
else of it. On an H200 24 rows of a 16 GB table take 2.5 us in a graph so; `index_select` on the host and a copy, 20 us.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2
from flagrelease.engine.kernels.linear.linear import stored_scale
from flagrelease.engine.kernels.quantisation.codes import scale_value
from flagrelease.engine.kernels.quantisation.e4m3 import numbers
from flagrelease.engine.kernels.reference import v41 as reference
from flagrelease.engine.kernels.weights import MX_BLOCK

ROWS = 4  # of a program: few, so that one token's 24 are asked for by several multiprocessors


@early_kernel
def _rows_kernel(
    rows_ptr: tl.tensor,
    table_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    y_ptr: tl.tensor,
    N: tl.tensor,
    first: tl.tensor,
    R: tl.tensor,
    D: tl.tensor,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    g = tl.arange(0, GROUPS)
    wait_for_results()
    row = tl.load(rows_ptr + n, mask=n < N, other=-1) - first
    owned = (row >= 0) & (row < R)
    column = g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = owned[:, None, None] & (column < D)[None, :, :]
    codes = tl.load(table_ptr + row[:, None, None] * D + column[None, :, :], mask=inside, other=0.0)
    x = numbers(codes, tl.bfloat16).to(tl.float32)
    if scale_ptr is not None:
        at = row[:, None] * (D // GROUP) + g[None, :]
        byte = tl.load(scale_ptr + at, mask=owned[:, None] & (g * GROUP < D)[None, :], other=127)
        x = x * scale_value(byte)[:, :, None]
    x = tl.where(inside, x, 0.0)
    there = (n < N)[:, None, None] & (column < D)[None, :, :]
    tl.store(y_ptr + n[:, None, None] * D + column[None, :, :], cast(x, y_ptr.dtype.element_ty), mask=there)


def engram_rows(codes: Tensor, scales: Tensor | None, rows: Tensor, first: int = 0) -> Tensor:
    """See `reference.v41.engram_rows`. A table of the host that is not pinned is read there (`engine/host_rows.py`)."""
    R, D = codes.shape
    _check_table(codes, scales)
    if not all(_reached(part, rows.device) for part in (codes, scales) if part is not None):
        return reference.engram_rows(codes, scales, rows, first)
    rows = rows.contiguous()
    dtype = codes.dtype if scales is None else torch.bfloat16
    y = torch.empty(*rows.shape[:-1], rows.shape[-1] * D, dtype=dtype, device=rows.device)
    _rows_kernel[(ceil_div(rows.numel(), ROWS),)](
        rows, codes, stored_scale(scales), y, rows.numel(), first, R, D,
        GROUP=MX_BLOCK, GROUPS=next_power_of_2(D // MX_BLOCK), ROWS=ROWS, num_warps=4,
    )  # fmt: skip
    return y


def _check_table(codes: Tensor, scales: Tensor | None) -> None:
    """Refuse all but contiguous E4M3 [R, D] with E8M0 scales [R, D/32], and contiguous plain numbers."""
    if (codes.dtype == torch.float8_e4m3fn) != (scales is not None) or codes.shape[1] % MX_BLOCK:
        raise ValueError(
            f"an Engram table {codes.dtype} {tuple(codes.shape)} {'with' if scales is not None else 'without'} scales"
        )
    if scales is not None and (
        scales.dtype != torch.float8_e8m0fnu or tuple(scales.shape) != (len(codes), codes.shape[1] // MX_BLOCK)
    ):
        raise ValueError(
            f"an Engram table {tuple(codes.shape)} has scales {scales.dtype} {tuple(scales.shape)}: E8M0, one for "
            f"{MX_BLOCK} columns of each row"
        )
    if not (codes.is_contiguous() and (scales is None or scales.is_contiguous())):
        raise ValueError("an Engram table and its scales are contiguous")


def _reached(part: Tensor, device: torch.device) -> bool:
    return part.device == device or part.is_pinned()
