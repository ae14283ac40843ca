"""INT8 and FP8 with a scale for each row, in Triton. Legend: R rows, K columns, in steps of BLOCK_K."""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.layout import next_power_of_2, rows
from flagrelease.engine.kernels.quantisation.e4m3 import as_e4m3
from flagrelease.engine.kernels.reference.row_scales import TOKEN_SCALE_FLOOR

LONGEST_STEP = 4096


@early_kernel
def _token_quant_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    x_stride: tl.tensor,
    K: tl.tensor,
    floor: tl.tensor,
    INTEGER: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    wait_for_results()
    r = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        largest = tl.maximum(largest, tl.abs(tl.load(x_ptr + r * x_stride + k, mask=k < K, other=0.0).to(tl.float32)))
    amax = tl.max(largest, axis=0) + tl.zeros((1,), tl.float32)
    limit = tl.full((1,), 127.0 if INTEGER else 448.0, tl.float32)
    scale = tl.maximum(tl.div_rn(amax, limit), floor)
    tl.store(scale_ptr + r + tl.arange(0, 1), scale)
    divisor = tl.where(scale > 0.0, scale, 1.0)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + r * x_stride + k, mask=k < K, other=0.0).to(tl.float32)
        y = tl.div_rn(x, tl.broadcast_to(divisor, (BLOCK_K,)))
        y = tl.minimum(tl.maximum(y, -limit), limit)
        if INTEGER:
            y = (y + 12582912.0) - 12582912.0  # 1.5 * 2^23: there FP32 addition rounds to integers
            tl.store(y_ptr + r * K + k, y.to(tl.int8), mask=k < K)
        else:
            tl.store(y_ptr + r * K + k, as_e4m3(y, y_ptr.dtype.element_ty), mask=k < K)


def token_quant(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `reference.token_quant`."""
    if dtype not in (torch.int8, torch.float8_e4m3fn):
        raise ValueError(f"rows are quantised to int8 or float8_e4m3fn, not {dtype}")
    codes = torch.empty(x.shape, dtype=dtype, device=x.device)
    scales = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    x_rows, K = rows(x), x.shape[-1]
    integer, block = dtype == torch.int8, min(LONGEST_STEP, next_power_of_2(K))
    _token_quant_kernel[(len(x_rows),)](
        x_rows, codes, scales, x_rows.stride(0), K, 0.0 if integer else TOKEN_SCALE_FLOOR, INTEGER=integer,
        BLOCK_K=block, num_warps=8 if block > 1024 else 4,
    )  # fmt: skip
    return codes, scales
