"""The k best visible entries of a row, in Triton, without sorting and without knowing lengths on the host.

The k-th largest score is found bit by bit (counts over the row): FP32 numbers order like integers once the sign is
folded in. Then one pass in index order keeps what is larger, and as many equal ones as fit.
Legend: N entries, K wanted.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import jit
from flagrelease.engine.kernels.layout import next_power_of_2, rows

SHORT = 8192  # entries


@jit
def _ordered(score: tl.tensor) -> tl.tensor:
    """FP32 as uint32 of the same order; -0 counts as 0."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)


@jit
def _threshold_of_short_row(key: tl.tensor, inside: tl.tensor, K: tl.tensor) -> tl.tensor:
    """The K-th largest key: 16 rounds of two bits, each with three counts added up as one number."""
    threshold = tl.zeros((), tl.uint32)
    one = tl.full((), 1, tl.uint32)
    for step in range(16):
        bit = one << (30 - 2 * step)
        low, middle, high = threshold | bit, threshold | (bit << 1), threshold | (bit << 1) | bit
        counts = (key >= low).to(tl.int64) + ((key >= middle).to(tl.int64) << 20) + ((key >= high).to(tl.int64) << 40)
        total = tl.sum(tl.where(inside, counts, 0), axis=0)
        threshold = tl.where((total & 1048575) >= K, low, threshold)
        threshold = tl.where(((total >> 20) & 1048575) >= K, middle, threshold)
        threshold = tl.where((total >> 40) >= K, high, threshold)
    return threshold


@early_kernel
def _short_row_kernel(
    scores_ptr: tl.tensor,
    visible_ptr: tl.tensor,
    y_ptr: tl.tensor,
    scores_stride: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    offset: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """A row that registers hold: it is read once."""
    wait_for_results()
    row = tl.program_id(0).to(tl.int64)
    visible = tl.minimum(tl.load(visible_ptr + row).to(tl.int32), N)
    n = tl.arange(0, BLOCK_N)
    inside = n < visible
    key = _ordered(tl.load(scores_ptr + row * scores_stride + n, mask=n < N, other=0.0))
    threshold = tl.zeros((), tl.uint32)
    if visible > K:
        threshold = _threshold_of_short_row(key, inside, K)
    above = (inside & (key > threshold)).to(tl.int32)
    equal = (inside & (key == threshold)).to(tl.int32)
    equal *= (tl.cumsum(equal, axis=0) <= K - tl.sum(above, axis=0)).to(tl.int32)
    take = above + equal
    tl.store(y_ptr + row * K + tl.cumsum(take, axis=0) - 1, n + offset, mask=take > 0)
    slot = tl.arange(0, BLOCK_K)
    tl.store(
        y_ptr + row * K + slot,
        tl.full((BLOCK_K,), -1, tl.int32),
        mask=(slot >= tl.sum(take, axis=0)) & (slot < K),
    )


@early_kernel
def _topk_visible_kernel(
    scores_ptr: tl.tensor,
    visible_ptr: tl.tensor,
    y_ptr: tl.tensor,
    scores_stride: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    offset: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    wait_for_results()
    row = tl.program_id(0).to(tl.int64)
    scores = scores_ptr + row * scores_stride
    visible = tl.minimum(tl.load(visible_ptr + row).to(tl.int32), N)

    # The largest threshold that K entries reach; 0, which all reach, where there are no more than K.
    threshold = tl.zeros((), tl.uint32)
    if visible > K:
        for step in range(32):
            candidate = threshold | (tl.full((), -2147483648, tl.int32).to(tl.uint32, bitcast=True) >> step)
            reached = 0
            for start in range(0, visible, BLOCK_N):
                n = start + tl.arange(0, BLOCK_N)
                key = _ordered(tl.load(scores + n, mask=n < visible, other=0.0))
                reached += tl.sum(((key >= candidate) & (n < visible)).to(tl.int32), axis=0)
            threshold = tl.where(reached >= K, candidate, threshold)

    larger = 0
    for start in range(0, visible, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        key = _ordered(tl.load(scores + n, mask=n < visible, other=0.0))
        larger += tl.sum(((key > threshold) & (n < visible)).to(tl.int32), axis=0)
    equal_left = K - larger
    taken = 0
    for start in range(0, visible, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        key = _ordered(tl.load(scores + n, mask=n < visible, other=0.0))
        equal = ((key == threshold) & (n < visible)).to(tl.int32)
        first_equal = equal * (tl.cumsum(equal, axis=0) <= equal_left).to(tl.int32)
        take = ((key > threshold) & (n < visible)).to(tl.int32) + first_equal
        slot = taken + tl.cumsum(take, axis=0) - 1
        tl.store(y_ptr + row * K + slot, n + offset, mask=take > 0)
        taken += tl.sum(take, axis=0)
        equal_left -= tl.sum(first_equal, axis=0)
    for start in range(0, K, BLOCK_K):
        slot = start + tl.arange(0, BLOCK_K)
        tl.store(y_ptr + row * K + slot, tl.full((BLOCK_K,), -1, tl.int32), mask=(slot >= taken) & (slot < K))


def topk_visible(scores: Tensor, visible: Tensor, k: int, offset: int = 0) -> Tensor:
    """See `reference.topk_visible`."""
    if scores.dtype != torch.float32 or visible.shape != scores.shape[:-1]:
        raise ValueError(f"scores {scores.dtype} {tuple(scores.shape)} (FP32) and visible {tuple(visible.shape)}")
    N = scores.shape[-1]
    K = min(k, N)
    y = torch.empty(*scores.shape[:-1], K, dtype=torch.int32, device=scores.device)
    if K == 0:
        return y
    table = rows(scores)
    if N <= SHORT:
        _short_row_kernel[(len(table),)](
            table, visible.contiguous(), y, table.stride(0), N, K, offset,
            BLOCK_N=max(32, next_power_of_2(N)), BLOCK_K=next_power_of_2(K),
            num_warps=4 if N <= 2048 else 8,
        )  # fmt: skip
        return y
    _topk_visible_kernel[(len(table),)](
        table, visible.contiguous(), y, table.stride(0), N, K, offset,
        BLOCK_N=4096, BLOCK_K=min(1024, next_power_of_2(K)), num_warps=8,
    )  # fmt: skip
    return y
