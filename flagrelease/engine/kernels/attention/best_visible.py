"""The k best visible entries of a few rows, in Triton: every candidate's place is how many are better.

That is M^2 comparisons and no step that waits for another, so a row is done by many programs at once.
Legend: R rows, N values, M candidates among them, K wanted; see `candidates`.
"""
# ruff: noqa: N803  (dimensions of the legend)

from collections.abc import Sequence

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
from flagrelease.engine.kernels.attention.topk_visible import choose_in_rows
from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import jit
from flagrelease.engine.kernels.layout import ceil_div, check_given, next_power_of_2

# Comparing is faster than a program a row for few rows, and for more up to so many comparisons at a level.
FEW_ROWS = 4
COMPARISONS = 9 << 20
LOWEST = tl.constexpr(-2147483648)
HIDDEN = tl.constexpr(1073741824)  # what is not visible is at this place or behind


@jit
def _candidates(
    values: tl.tensor, groups: tl.tensor, c: tl.tensor, limit: tl.tensor, M: tl.tensor, GROUP: tl.constexpr
) -> tl.tensor:
    """The scores of candidates c as integers, and their places, which decide between equal ones."""
    at = candidate_places(c, groups, M, GROUP)
    there = (c < M) & (at >= 0) & (at < limit)
    key = ordered(tl.load(values + at, mask=there, other=0.0))
    return tl.where(there, key, LOWEST), tl.where(there, at, HIDDEN + c)


@early_kernel
def _comparing_kernel(
    values_ptr: tl.tensor,
    groups_ptr: tl.tensor,
    visible_ptr: tl.tensor,
    y_ptr: tl.tensor,
    values_stride: tl.tensor,
    N: tl.tensor,
    M: tl.tensor,
    K: tl.tensor,
    span: tl.tensor,
    GROUP: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
) -> None:
    """y[place of candidate i] = where it is in the row, or -1 where it is not visible."""
    row = tl.program_id(0).to(tl.int64)
    limit = visible_values(tl.load(visible_ptr + row), span, N)  # given to the step, nobody's result
    wait_for_results()
    values, groups, last = values_ptr + row * values_stride, groups_ptr, limit
    if groups_ptr is not None:
        groups, last = groups_ptr + row * (M // GROUP), M
    first = tl.program_id(1) * BLOCK_I
    if (first < K) | (first < last):
        i = first + tl.arange(0, BLOCK_I)
        own_key, own_at = _candidates(values, groups, i, limit, M, GROUP)
        better = tl.zeros((BLOCK_I, BLOCK_J), tl.int32)
        for start in range(0, last, BLOCK_J):
            key, at = _candidates(values, groups, start + tl.arange(0, BLOCK_J), limit, M, GROUP)
            earlier = at[None, :] < own_at[:, None]
            better += ((key[None, :] > own_key[:, None]) | ((key[None, :] == own_key[:, None]) & earlier)).to(tl.int32)
        place = tl.sum(better, axis=1)
        if groups_ptr is None:  # those that are not visible come behind, in their order
            place = tl.where(i < limit, place, i)
        tl.store(y_ptr + row * K + place, tl.where(own_at < HIDDEN, own_at, -1), mask=(i < M) & (place < K))


def _choose_by_comparing(level: Level, visible: Tensor, k: int, groups: Tensor | None) -> Tensor:
    """A `candidates.Choose` with many programs a row, the best first."""
    R, N = level.values.shape
    M = N if groups is None else groups.shape[1] * GROUP
    y = torch.empty(R, k, dtype=torch.int32, device=visible.device)
    block_i, block_j, warps = _tile(R, M)
    _comparing_kernel[(R, ceil_div(M, block_i))](
        level.values, groups, visible, y, level.values.stride(0), N, M, k, level.span,
        GROUP=GROUP, BLOCK_I=block_i, BLOCK_J=block_j, num_warps=warps,
    )  # fmt: skip
    return y


def _tile(rows: int, candidates: int) -> tuple[int, int, int]:
    """Candidates of a program, those that they are compared with at once, warps; only speed depends on them."""
    if candidates <= 1100:
        at_once = 512 if rows == 1 else 256
        return (8 if rows == 1 else 16), min(at_once, max(32, next_power_of_2(candidates))), 4
    return 16, 1024 if rows == 1 and candidates <= 2112 else 512, 8


def best_of_levels(levels: Sequence[Level], visible: Tensor, k: int) -> Tensor:
    """`candidates.choose_level_by_level`, the faster way for so many rows."""
    candidates = max(levels[-1].values.shape[1], k * GROUP if len(levels) > 1 else 0)
    few = len(visible) <= FEW_ROWS or len(visible) * candidates**2 <= COMPARISONS
    return choose_level_by_level(levels, visible, k, _choose_by_comparing if few else choose_in_rows)


def best_visible(scores: Tensor, visible: Tensor, k: int) -> Tensor:
    """See `reference.best_visible`."""
    R = len(scores)
    if scores.dtype != torch.float32 or scores.stride(1) != 1:
        raise ValueError(f"scores {scores.dtype} {tuple(scores.shape)}: FP32 rows of contiguous columns are needed")
    check_given(visible, R, "visible")
    K = min(k, scores.shape[1])
    if K == 0:
        return torch.empty(R, K, dtype=torch.int32, device=scores.device)
    return best_of_levels(with_group_maxima(scores, visible), visible, K)
