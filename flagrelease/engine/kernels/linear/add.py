"""Addition with one rounding, in Triton. Legend: N elements."""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast
from flagrelease.engine.kernels.layout import ceil_div

BLOCK = 1024


@early_kernel
def _add_kernel(a_ptr: tl.tensor, b_ptr: tl.tensor, y_ptr: tl.tensor, N: tl.tensor, BLOCK_N: tl.constexpr) -> None:
    wait_for_results()
    i = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    a = tl.load(a_ptr + i, mask=i < N, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + i, mask=i < N, other=0.0).to(tl.float32)
    tl.store(y_ptr + i, cast(a + b, y_ptr.dtype.element_ty), mask=i < N)


def add(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """See `reference.add`. A broadcast operand is copied out first."""
    a, b = (t.contiguous() for t in torch.broadcast_tensors(a, b))  # type: ignore[no-untyped-call]
    y = torch.empty(a.shape, dtype=dtype, device=a.device)
    _add_kernel[(ceil_div(a.numel(), BLOCK),)](a, b, y, a.numel(), BLOCK_N=BLOCK)
    return y
