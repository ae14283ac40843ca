"""The k best visible entries of a row, in Triton, without sorting and without knowing lengths on the host.

A program holds the candidates of a row in registers. It finds the k-th largest score bit by bit (counts over the row):
FP32 numbers order like integers once the sign is folded in. Then it keeps, in the order of places, what is larger, and
as many equal ones as fit.
Legend: R rows, N values, M candidates among them, K wanted; see `candidates`.
"""
# ruff: noqa: N803  (dimensions of the legend)

from functools import partial

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.attention.candidates import (
    GROUP,
    Level,
    candidate_places,
    choose_level_by_level,
    ordered,
    visible_values,
)
from flagrelease.engine.kernels.attention.group_maxima import with_group_maxima
from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import jit
from flagrelease.engine.kernels.layout import next_power_of_2, rows


@jit
def _threshold(key: tl.tensor, inside: tl.tensor, K: tl.tensor) -> tl.tensor:
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
def _row_kernel(
    values_ptr: tl.tensor,
    groups_ptr: tl.tensor,
    visible_ptr: tl.tensor,
    y_ptr: tl.tensor,
    values_stride: tl.tensor,
    N: tl.tensor,
    M: tl.tensor,
    K: tl.tensor,
    span: tl.tensor,
    offset: tl.tensor,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Places in ascending order, then -1; `groups` are in ascending order, so candidates are."""
    wait_for_results()
    row = tl.program_id(0).to(tl.int64)
    limit = visible_values(tl.load(visible_ptr + row), span, N)
    c = tl.arange(0, BLOCK_M)
    groups = groups_ptr
    if groups_ptr is not None:
        groups = groups_ptr + row * (M // GROUP)
    at = candidate_places(c, groups, M, GROUP)
    inside = (c < M) & (at >= 0) & (at < limit)
    key = ordered(tl.load(values_ptr + row * values_stride + at, mask=inside, other=0.0))
    key = (key ^ -2147483648).to(tl.uint32, bitcast=True)
    there = tl.sum(inside.to(tl.int32), axis=0)
    above, equal = inside.to(tl.int32), tl.zeros((BLOCK_M,), tl.int32)
    left = 0
    if there > K:
        threshold = _threshold(key, inside, K)
        above, equal = (inside & (key > threshold)).to(tl.int32), (inside & (key == threshold)).to(tl.int32)
        left = K - tl.sum(above, axis=0)
    before = tl.cumsum((above << 16) + equal, axis=0)  # both counts in one number
    larger, alike = before >> 16, before & 65535
    take = (above > 0) | ((equal > 0) & (alike <= left))
    tl.store(y_ptr + row * K + larger + tl.minimum(alike, left) - 1, at + offset, mask=take)
    slot = tl.arange(0, BLOCK_K)
    tl.store(y_ptr + row * K + slot, tl.full((BLOCK_K,), -1, tl.int32), mask=(slot >= there) & (slot < K))


def choose_in_rows(
    level: Level, visible: Tensor, k: int, groups: Tensor | None, offset: int = 0, group: int = GROUP
) -> Tensor:
    """A `candidates.Choose` with a program a row, in ascending order; `offset` is added to the places of scores.

    `group`: values that each of `groups` stands for.
    """
    R, N = level.values.shape
    M = N if groups is None else groups.shape[1] * group
    y = torch.empty(R, k, dtype=torch.int32, device=visible.device)
    _row_kernel[(R,)](
        level.values, groups, visible, y, level.values.stride(0), N, M, k, level.span,
        offset if level.span == 1 else 0,
        GROUP=group, BLOCK_M=max(32, next_power_of_2(M)), BLOCK_K=next_power_of_2(k), num_warps=_warps(M),
    )  # fmt: skip
    return y


def _warps(candidates: int) -> int:
    return 4 if candidates <= 2048 else 8


def topk_visible(scores: Tensor, visible: Tensor, k: int, offset: int = 0) -> Tensor:
    """See `reference.topk_visible`."""
    if scores.dtype != torch.float32 or visible.shape != scores.shape[:-1]:
        raise ValueError(f"scores {scores.dtype} {tuple(scores.shape)} (FP32) and visible {tuple(visible.shape)}")
    N = scores.shape[-1]
    K = min(k, N)
    if K == 0:
        return torch.empty(*scores.shape[:-1], K, dtype=torch.int32, device=scores.device)
    visible = visible.reshape(-1).contiguous()
    levels = with_group_maxima(rows(scores), visible)
    chosen = choose_level_by_level(levels, visible, K, partial(choose_in_rows, offset=offset))
    return chosen.view(*scores.shape[:-1], K)
