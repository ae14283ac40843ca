"""The indexer's choice for each query in Triton: scores of all entries of its row, and with them the levels above.

Programs walk over a row's tiles with several loads in flight.
Legend: B rows, T queries, H index heads, N entries, D index dimension.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.attention.best_visible import best_of_levels
from flagrelease.engine.kernels.attention.candidates import GROUP, Level, spans
from flagrelease.engine.kernels.attention.indexer_scores import entry_scores
from flagrelease.engine.kernels.attention.key_rows import (
    index_row_bytes,
    load_index_keys,
    load_index_query,
)
from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import dot, jit
from flagrelease.engine.kernels.layout import ceil_div, check_given, next_power_of_2, unit_columns
from flagrelease.engine.kernels.targets import TARGET

MANY_SCORES = 1 << 17  # for which a chip's programs walk over several tiles each


@jit
def _store_maxima(
    scores: tl.tensor,
    tile: tl.tensor,
    y_ptr: tl.tensor,
    t: tl.tensor,
    N: tl.tensor,
    visible: tl.tensor,
    SPAN: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Of each SPAN scores in a tile the maximum, where a visible entry is behind it; nothing if y is None."""
    if y_ptr is not None:
        best = tl.max(tl.reshape(scores, (BLOCK_N // SPAN, SPAN)), axis=1)
        g = tile * (BLOCK_N // SPAN) + tl.arange(0, BLOCK_N // SPAN)
        tl.store(y_ptr + t * ((N + SPAN - 1) // SPAN) + g, best, mask=g * SPAN < visible)


@jit
def _coded_scores(
    even: tl.tensor, odd: tl.tensor, q_even: tl.tensor, q_odd: tl.tensor, weight: tl.tensor, BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """As `entry_scores`, of keys that come in even and odd columns: putting these together would take longer."""
    scores = dot(even, tl.trans(q_even), tl.zeros((BLOCK_N, BLOCK_H), tl.float32))
    scores = tl.maximum(dot(odd, tl.trans(q_odd), scores), 0.0)
    return tl.sum(scores * weight[None, :], axis=1)


@early_kernel
def _entry_scores_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    visible_ptr: tl.tensor,
    y_ptr: tl.tensor,
    first_ptr: tl.tensor,
    second_ptr: tl.tensor,
    third_ptr: tl.tensor,
    H: tl.tensor,
    N: tl.tensor,
    D: tl.tensor,
    B: tl.tensor,
    q_t: tl.tensor,
    q_h: tl.tensor,
    k_b: tl.tensor,
    k_n: tl.tensor,
    w_t: tl.tensor,
    ROW: tl.constexpr,
    PTX: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NEXT: tl.constexpr,
) -> None:
    """Scores of the visible entries, and the levels above that are asked for."""
    t = tl.program_id(0).to(tl.int64)
    h, d = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    visible = tl.minimum(tl.load(visible_ptr + t).to(tl.int32), N)  # given to the step, nobody's result
    wait_for_results(NEXT)
    if ROW == 0:
        inside = (h < H)[:, None] & (d < D)[None, :]
        q = tl.load(q_ptr + t * q_t + h[:, None] * q_h + d[None, :], mask=inside, other=0.0)
    else:
        q_even, q_odd = load_index_query(q_ptr + t * q_t, q_h, h, H, BLOCK_H, BLOCK_D)
    weight = tl.load(weights_ptr + t * w_t + h, mask=h < H, other=0.0).to(tl.float32)
    for tile in range(tl.program_id(1), (visible + BLOCK_N - 1) // BLOCK_N, tl.num_programs(1)):
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        keys = k_ptr + t % B * k_b
        if ROW == 0:
            at = keys + n.to(tl.int64)[:, None] * k_n + d[None, :]
            k = tl.load(at, mask=(n < visible)[:, None] & (d < D)[None, :], other=0.0)
            scores = entry_scores(k, q, weight, BLOCK_N, BLOCK_H)
        else:
            even, odd = load_index_keys(keys, n, n < visible, q_ptr.dtype.element_ty, BLOCK_N, BLOCK_D, ROW, PTX)
            scores = _coded_scores(even, odd, q_even, q_odd, weight, BLOCK_N, BLOCK_H)
        tl.store(y_ptr + t * N + n, scores, mask=n < visible)
        scores = tl.where(n < visible, scores, float("-inf"))
        _store_maxima(scores, tile, first_ptr, t, N, visible, GROUP, BLOCK_N)
        _store_maxima(scores, tile, second_ptr, t, N, visible, GROUP * GROUP, BLOCK_N)
        _store_maxima(scores, tile, third_ptr, t, N, visible, GROUP * GROUP * GROUP, BLOCK_N)


def choose_entries(q: Tensor, keys: Tensor, weights: Tensor, visible: Tensor, k: int) -> Tensor:
    """See `reference.choose_entries`."""
    T, H, D = q.shape
    B, N, _ = keys.shape
    row = index_row_bytes(keys, q.dtype, D)
    if weights.shape != (T, H) or T % B:
        raise ValueError(
            f"entries chosen by q {q.dtype} {tuple(q.shape)}, keys {keys.dtype} {tuple(keys.shape)}, "
            f"weights {tuple(weights.shape)}"
        )
    check_given(visible, T, "visible")
    K = min(k, N)
    if K == 0:
        return torch.empty(T, K, dtype=torch.int32, device=q.device)
    q, keys, weights = unit_columns(q), unit_columns(keys), unit_columns(weights)
    levels = [Level(torch.empty(T, ceil_div(N, span), dtype=torch.float32, device=q.device), span) for span in spans(N)]
    above = [level.values for level in levels[1:]] + [None] * 3
    block_n, warps, stages, most = _tile(T * N, coded=row > 0, single=q.element_size() == 4)
    programs = min(ceil_div(N, block_n), max(1, most // T))
    _entry_scores_kernel[(T, programs)](
        q, keys, weights, visible, levels[0].values, *above[:3], H, N, D, B, *q.stride()[:2], *keys.stride()[:2],
        weights.stride(0), ROW=row, PTX=row > 0 and TARGET.multiplies_bf16_pairs, GROUP=GROUP,
        BLOCK_H=max(16, next_power_of_2(H)), BLOCK_N=block_n, BLOCK_D=max(16, next_power_of_2(D)),
        NEXT=T * programs < TARGET.sizes.filled, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return best_of_levels(levels, visible, K)


def _tile(scores: int, *, coded: bool, single: bool) -> tuple[int, int, int, int]:
    """Entries of a tile (at least GROUP^3), warps, loads in flight, programs; only speed depends on them.

    `coded`: of rows of codes, whose decoding takes as long as their way from memory; `single`: of FP32.
    """
    multiprocessors = TARGET.sizes.multiprocessors
    if single:
        return 64, 4, 1, multiprocessors
    if coded and scores >= MANY_SCORES:
        return (128, 4, 3, multiprocessors * 2) if scores >= 8 * MANY_SCORES else (64, 4, 3, multiprocessors * 4)
    return 64, 4, 3, multiprocessors * 2
