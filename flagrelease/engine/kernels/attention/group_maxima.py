"""The levels above a row's scores, in Triton. Legend: R rows, N values."""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.attention.candidates import GROUP, Level, spans, visible_values
from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.layout import ceil_div

VALUES = 4096  # of a program


@early_kernel
def _group_maxima_kernel(
    values_ptr: tl.tensor,
    visible_ptr: tl.tensor,
    y_ptr: tl.tensor,
    values_stride: tl.tensor,
    N: tl.tensor,
    span: tl.tensor,
    y_stride: tl.tensor,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """What no visible entry is behind is not written, and nobody reads it."""
    wait_for_results()
    row = tl.program_id(0).to(tl.int64)
    limit = visible_values(tl.load(visible_ptr + row), span, N)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(values_ptr + row * values_stride + n, mask=n < limit, other=float("-inf"))
    g = tl.program_id(1) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    best = tl.max(tl.reshape(values, (BLOCK // GROUP, GROUP)), axis=1)
    tl.store(y_ptr + row * y_stride + g, best, mask=g * GROUP < limit)


def with_group_maxima(scores: Tensor, visible: Tensor) -> list[Level]:
    """The levels of FP32 scores [R, N] with unit columns, of which each row's first `visible` [R] count."""
    levels = [Level(scores, 1)]
    for span in spans(scores.shape[1])[1:]:
        below = levels[-1]
        R, N = below.values.shape
        y = torch.empty(R, ceil_div(scores.shape[1], span), dtype=torch.float32, device=scores.device)
        _group_maxima_kernel[(R, ceil_div(N, VALUES))](
            below.values, visible, y, below.values.stride(0), N, below.span, y.stride(0),
            GROUP=GROUP, BLOCK=VALUES,
        )  # fmt: skip
        levels.append(Level(y, span))
    return levels
