"""RMSNorm in Triton. Legend: R rows, D columns; a program normalises BLOCK_R whole rows."""
# ruff: noqa: N803  (dimensions of the legend)

import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, output, rows
from flagrelease.engine.kernels.row_vectors import rounded, stepwise_factor

TILE = 4096  # elements of a program's tile, where rows are shorter


@early_kernel
def _rms_norm_kernel(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    y_ptr: tl.tensor,
    x_stride: tl.tensor,
    y_stride: tl.tensor,
    R: tl.tensor,
    D: tl.tensor,
    eps: tl.tensor,
    STEPWISE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    d = tl.arange(0, BLOCK_D)
    if w_ptr is not None:  # nobody's result
        w = tl.load(w_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    wait_for_results()
    r = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    inside = (r < R) & (d < D)[None, :]
    x = tl.load(x_ptr + r * x_stride + d[None, :], mask=inside, other=0.0).to(tl.float32)
    dtype = y_ptr.dtype.element_ty
    if STEPWISE:
        y = x * stepwise_factor(tl.sum(rounded(x * x, dtype), axis=1), D, eps, dtype)[:, None]
    else:
        y = x * tl.rsqrt(tl.sum(x * x, axis=1) / D + eps)[:, None]
    if w_ptr is not None:
        y *= w[None, :]
    tl.store(y_ptr + r * y_stride + d[None, :], cast(y, dtype), mask=inside)


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, out: Tensor | None = None, stepwise: bool = False
) -> Tensor:  # fmt: skip
    """See `reference.rms_norm`."""
    if stepwise and weight is not None:
        raise ValueError("only the norm without a weight is rounded step by step")
    if weight is not None and (weight.shape != x.shape[-1:] or weight.stride(0) != 1):
        raise ValueError(f"the norm's weight has shape {tuple(weight.shape)} for {x.shape[-1]} columns")
    y = output(x, out)
    x_rows, y_rows = rows(x), y.view(-1, y.shape[-1])
    R, D = x_rows.shape
    block_d = next_power_of_2(D)
    block_r = max(1, TILE // block_d)
    _rms_norm_kernel[(ceil_div(R, block_r),)](
        x_rows, weight, y_rows, x_rows.stride(0), y_rows.stride(0), R, D, eps,
        STEPWISE=stepwise, BLOCK_R=block_r, BLOCK_D=block_d, num_warps=4 if block_d <= TILE else 8,
    )  # fmt: skip
    return y
