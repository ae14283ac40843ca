"""Parts of a product added up, through SwiGLU if wanted, and rounded, in Triton. Legend: B rows, S parts, N columns."""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.experts.swiglu import clamped_swiglu
from flagrelease.engine.kernels.interpreter import cast
from flagrelease.engine.kernels.layout import ceil_div, unit_columns
from flagrelease.engine.kernels.row_vectors import rounded, store_fp8, sum_parts

BLOCK = 512


@early_kernel
def _round_parts_kernel(
    parts_ptr: tl.tensor,
    y_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    part_stride: tl.tensor,
    row_stride: tl.tensor,
    S: tl.constexpr,
    N: tl.tensor,
    limit: tl.tensor,
    SWIGLU: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    wait_for_results()
    b = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * BLOCK_N
    n = start + tl.arange(0, BLOCK_N)
    dtype = y_ptr.dtype.element_ty
    x = rounded(sum_parts(parts_ptr + b * row_stride, n, n < N, part_stride, S, S), dtype)
    if SWIGLU:
        up = rounded(sum_parts(parts_ptr + b * row_stride, N + n, n < N, part_stride, S, S), dtype)
        x = rounded(clamped_swiglu(x, up, limit), dtype)
    tl.store(y_ptr + b * N + n, cast(x, dtype), mask=n < N)
    if codes_ptr is not None:
        codes, scales = codes_ptr + b * N + start, scales_ptr + (b * N + start) // 128
        store_fp8(x, codes, scales, N - start, BLOCK_N)


def round_parts(parts: Tensor, dtype: torch.dtype, quantise: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `reference.round_parts`."""
    return _launch(parts, parts.shape[2], 0.0, dtype, quantise, swiglu=False)


def swiglu_parts(
    parts: Tensor, limit: float, dtype: torch.dtype, quantise: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `reference.swiglu_parts`."""
    return _launch(parts, parts.shape[2] // 2, limit, dtype, quantise, swiglu=True)


def _launch(
    parts: Tensor, N: int, limit: float, dtype: torch.dtype, quantise: bool, *, swiglu: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    S, B, _ = parts.shape
    if quantise and N % 128:
        raise ValueError(f"groups of 128 columns do not divide {N}")
    parts = unit_columns(parts)
    y = torch.empty(B, N, dtype=dtype, device=parts.device)
    codes = torch.empty(B, N, dtype=torch.float8_e4m3fn, device=parts.device) if quantise else None
    scales = torch.empty(B, N // 128, dtype=torch.float32, device=parts.device) if quantise else None
    _round_parts_kernel[(B, ceil_div(N, BLOCK))](
        parts, y, codes, scales, parts.stride(0), parts.stride(1), S, N, limit, SWIGLU=swiglu, BLOCK_N=BLOCK
    )
    return y, codes, scales
