"""FP8 weights as BF16: for so many rows that decoding a weight once costs less than decoding it in every tile.

Legend: G groups, N outputs, K columns.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast
from flagrelease.engine.kernels.layout import ceil_div
from flagrelease.engine.kernels.quantisation.codes import scale_value
from flagrelease.engine.kernels.quantisation.e4m3 import numbers

ROWS = 1024  # from here on, on an H200: decoding takes as long as 450 rows save


@early_kernel
def _widen_kernel(w_ptr: tl.tensor, ws_ptr: tl.tensor, y_ptr: tl.tensor, K: tl.tensor) -> None:
    """A block of 128 rows and columns, which has one scale."""
    wait_for_results()
    row = (tl.program_id(0) * 128 + tl.arange(0, 128)).to(tl.int64)
    k = tl.program_id(1) * 128 + tl.arange(0, 128)
    at, inside = row[:, None] * K + k[None, :], (k < K)[None, :]
    scale = scale_value(tl.load(ws_ptr + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)))
    w = numbers(tl.load(w_ptr + at, mask=inside, other=0.0), tl.float32).to(tl.float32)
    tl.store(y_ptr + at, cast(w * scale, tl.bfloat16), mask=inside)


def widen(w: Tensor, ws: Tensor) -> Tensor:
    """E4M3 w [G, N, K] with E8M0 scales [G, N/128, K/128] as BF16 [G, N, K]; exact from scales of 2^-117 to 2^119.

    128 divides N. Both are contiguous.
    """
    G, N, K = w.shape
    if ws.dtype != torch.float8_e8m0fnu or N % 128 or not (w.is_contiguous() and ws.is_contiguous()):
        raise ValueError(f"E8M0 scales for whole blocks of 128 rows, not {ws.dtype} for {tuple(w.shape)}")
    y = torch.empty(G, N, K, dtype=torch.bfloat16, device=w.device)
    _widen_kernel[(G * N // 128, ceil_div(K, 128))](w, ws.view(torch.uint8), y, K, num_warps=8)
    return y
