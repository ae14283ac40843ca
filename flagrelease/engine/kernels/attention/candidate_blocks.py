"""The two levels of V4.1's indexer in Triton: the best blocks of entries, and the best entries of such blocks.

Legend: R rows (queries), N entries, SIZE entries of a block, M candidates, K wanted.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.attention.candidates import Level
from flagrelease.engine.kernels.attention.topk_visible import choose_in_rows, topk_visible
from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, rows

ENTRIES = 1024  # of a program


@early_kernel
def _block_maxima_kernel(
    scores_ptr: tl.tensor,
    visible_ptr: tl.tensor,
    best_ptr: tl.tensor,
    reached_ptr: tl.tensor,
    scores_stride: tl.tensor,
    N: tl.tensor,
    blocks: tl.tensor,
    SIZE: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """Each block's best visible entry, +inf for the block of the newest one; and how many blocks have any."""
    wait_for_results()
    row = tl.program_id(0).to(tl.int64)
    visible = tl.minimum(tl.load(visible_ptr + row).to(tl.int32), N)
    b = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    n = b[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    scores = tl.load(scores_ptr + row * scores_stride + n, mask=n < visible, other=float("-inf"))
    best = tl.where(b == (visible - 1) // SIZE, float("inf"), tl.max(scores, axis=1))
    tl.store(best_ptr + row * blocks + b, best, mask=b < blocks)
    if tl.program_id(1) == 0:
        tl.store(reached_ptr + row, (visible + (SIZE - 1)) // SIZE)


def candidate_blocks(scores: Tensor, visible: Tensor, size: int, k: int) -> Tensor:
    """See `reference.v41.candidate_blocks`. `size` is a power of two."""
    _check(scores, visible, size)
    N, lead = scores.shape[-1], scores.shape[:-1]
    blocks = ceil_div(N, size)
    if blocks == 0:
        return torch.empty(*lead, 0, dtype=torch.int32, device=scores.device)
    scores_rows, R = rows(scores), lead.numel()
    best = torch.empty(*lead, blocks, dtype=torch.float32, device=scores.device)
    reached = torch.empty(lead, dtype=torch.int32, device=scores.device)
    many = min(ENTRIES // size, next_power_of_2(blocks))
    _block_maxima_kernel[(R, ceil_div(blocks, many))](
        scores_rows, visible.reshape(-1).contiguous(), best, reached, scores_rows.stride(0), N, blocks,
        SIZE=size, BLOCKS=many,
    )  # fmt: skip
    return topk_visible(best, reached, k)


def topk_candidates(scores: Tensor, visible: Tensor, k: int, blocks: Tensor, size: int) -> Tensor:
    """See `reference.v41.topk_candidates`. `blocks` are ascending, as `candidate_blocks` has them."""
    _check(scores, visible, size)
    if blocks.shape[:-1] != scores.shape[:-1] or blocks.dtype != torch.int32:
        raise ValueError(f"blocks {blocks.dtype} {tuple(blocks.shape)} (int32) of scores {tuple(scores.shape)}")
    K, lead = min(k, scores.shape[-1]), scores.shape[:-1]
    if K == 0:
        return torch.empty(*lead, 0, dtype=torch.int32, device=scores.device)
    level = Level(rows(scores), 1)
    given = visible.reshape(-1).contiguous()
    chosen = choose_in_rows(level, given, K, rows(blocks).contiguous(), group=size)
    return chosen.view(*lead, K)


def _check(scores: Tensor, visible: Tensor, size: int) -> None:
    if scores.dtype != torch.float32 or visible.shape != scores.shape[:-1] or size & (size - 1):
        raise ValueError(
            f"scores {scores.dtype} {tuple(scores.shape)} (FP32), visible {tuple(visible.shape)}, blocks of {size} (a "
            f"power of two)"
        )
