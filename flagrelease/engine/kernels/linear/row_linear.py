"""Linear layers of INT8, of FP8 with a scale for each row, and of MXFP8, in Triton.

Legend: M rows of activations, N outputs, K inputs. K is not cut into parts, so that INT8 sums stay INT32.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, rows, unit_columns
from flagrelease.engine.kernels.linear.row_product import mx_product, row_product
from flagrelease.engine.kernels.reference.row_scales import check_tokens
from flagrelease.engine.kernels.weights import check_mx_weight, check_row_weight, weight_format


@early_kernel
def _row_linear_kernel(
    x_ptr: tl.tensor,
    xs_ptr: tl.tensor,
    w_ptr: tl.tensor,
    ws_ptr: tl.tensor,
    y_ptr: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    x_row: tl.tensor,
    w_row: tl.tensor,
    ws_row: tl.tensor,
    y_row: tl.tensor,
    FORMAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    wait_for_results()
    x, w, ws = x_ptr + m * x_row, w_ptr + n * w_row, ws_ptr + n * ws_row
    if FORMAT == "mxfp8":
        y = mx_product(x, m < M, w, ws, n < N, K, BLOCK_M, BLOCK_N)
    else:
        y = row_product(x, xs_ptr + m, m < M, w, ws, n < N, K, FORMAT == "int8", BLOCK_M, BLOCK_N)
    at = y_ptr + m[:, None] * y_row + n[None, :]
    tl.store(at, cast(y, y_ptr.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


def row_linear(
    xq: Tensor, xs: Tensor, w: Tensor, ws: Tensor, out_dtype: torch.dtype = torch.bfloat16, out: Tensor | None = None
) -> Tensor:
    """See `reference.row_linear`."""
    check_row_weight(w, ws)
    check_tokens(xq, xs, w)
    return _launch(xq, xs.contiguous(), w, ws, out_dtype, out)


def mx_linear(
    x: Tensor, w: Tensor, ws: Tensor, out_dtype: torch.dtype = torch.bfloat16, out: Tensor | None = None
) -> Tensor:
    """See `reference.mx_linear`. BF16 or FP32 activations."""
    check_mx_weight(w, ws)
    if x.shape[-1] != w.shape[-1]:
        raise ValueError(f"the activation has {x.shape[-1]} columns, the weight {w.shape[-1]}")
    return _launch(x, None, w, unit_columns(ws), out_dtype, out)


def _launch(x: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor, out_dtype: torch.dtype, out: Tensor | None) -> Tensor:
    N, K = w.shape
    y = torch.empty(*x.shape[:-1], N, dtype=out_dtype, device=x.device) if out is None else out
    if y.dtype != out_dtype or y.shape != (*x.shape[:-1], N) or y.stride(-1) != 1:
        raise ValueError(f"out is {y.dtype} {tuple(y.shape)} for rows of {N} in {out_dtype}")
    y_rows = y if out is not None and y.dim() == 2 else y.view(-1, N)
    x_rows, w = rows(x), unit_columns(w)
    M, fmt = len(x_rows), weight_format(w, ws)
    block_m, block_n = _tile(M, N, single=x.dtype == torch.float32)
    _row_linear_kernel[(ceil_div(M, block_m), ceil_div(N, block_n))](
        x_rows, xs, w, ws, y_rows, M, N, K, x_rows.stride(0), w.stride(0), ws.stride(0), y_rows.stride(0),
        FORMAT=fmt, BLOCK_M=block_m, BLOCK_N=block_n, num_warps=4, num_stages=3,
    )  # fmt: skip
    return y


def _tile(rows_of_x: int, outputs: int, *, single: bool) -> tuple[int, int]:
    """(BLOCK_M, BLOCK_N); only speed depends on them. Few rows make few tiles, so the weight is cut finer then."""
    if single:
        return 16 if rows_of_x <= 16 else 32, 32
    block_m = max(16, next_power_of_2(min(rows_of_x, 64)))
    return block_m, 32 if rows_of_x <= 16 and outputs <= 8192 else 64
