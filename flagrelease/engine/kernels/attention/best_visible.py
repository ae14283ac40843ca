"""The k best visible entries of a few short rows, in Triton: every entry's place is how many are better.

That is N^2 comparisons and no step that waits for another, so a row is done by many programs at once.
Legend: B rows, N entries, K wanted.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.attention.topk_visible import topk_visible
from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2

COMPARISONS = 1 << 24  # up to which comparing all is faster than finding the K-th largest in a program a row
TILE = 8192  # comparisons of a program


@early_kernel
def _best_visible_kernel(
    scores_ptr: tl.tensor,
    visible_ptr: tl.tensor,
    y_ptr: tl.tensor,
    scores_stride: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    BLOCK_I: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """y[place of entry i] = i, or -1 where i is not visible: those come behind, in their order."""
    wait_for_results()
    b = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    j = tl.arange(0, BLOCK_N)
    scores = scores_ptr + b * scores_stride
    own = tl.load(scores + i, mask=i < N, other=0.0)[:, None]
    other = tl.load(scores + j, mask=j < N, other=0.0)
    visible = tl.minimum(tl.load(visible_ptr + b).to(tl.int32), N)
    other = tl.where(j < visible, other, float("-inf"))[None, :]
    earlier = j[None, :] < tl.minimum(i, visible)[:, None]
    better = ((other > own) | ((other == own) & earlier)).to(tl.int32)
    place = tl.where(i < visible, tl.sum(better, axis=1), i)
    tl.store(y_ptr + b * K + place, tl.where(i < visible, i, -1), mask=(i < N) & (place < K))


def best_visible(scores: Tensor, visible: Tensor, k: int) -> Tensor:
    """See `reference.best_visible`."""
    B, N = scores.shape
    if B * N * N > COMPARISONS:
        return topk_visible(scores, visible, k)
    if scores.dtype != torch.float32 or visible.shape != (B,) or scores.stride(1) != 1:
        raise ValueError(f"scores {scores.dtype} {tuple(scores.shape)} (FP32) and visible {tuple(visible.shape)}")
    K = min(k, N)
    y = torch.empty(B, K, dtype=torch.int32, device=scores.device)
    if K > 0:
        block_n = next_power_of_2(N)
        block_i = min(8, TILE // block_n)
        _best_visible_kernel[(B, ceil_div(N, block_i))](
            scores, visible.contiguous(), y, scores.stride(0), N, K, BLOCK_I=block_i, BLOCK_N=block_n
        )
    return y
