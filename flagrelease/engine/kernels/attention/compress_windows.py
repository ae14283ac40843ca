"""A compressor's step for many tokens of a row, in Triton: one launch pools windows, one remembers tokens.

Legend: B rows, S tokens of each, n windows that they complete, SLOTS tokens of a window (two windows' if they overlap),
D channels of an entry, C of a token (2D if windows overlap), P pending slots.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, jit
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, unit_columns

CHANNELS = 1024  # of a program that remembers


@jit
def _cache_row(rows_ptr: tl.tensor, b: tl.tensor) -> tl.tensor:
    """The row of the memory that row b of the step has."""
    if rows_ptr is None:
        return b
    else:  # noqa: RET505 - Triton compiles what follows a return
        return tl.load(rows_ptr + b).to(tl.int64)


@early_kernel
def _pool_kernel(
    kv_ptr: tl.tensor,
    score_ptr: tl.tensor,
    ape_ptr: tl.tensor,
    pending_kv_ptr: tl.tensor,
    pending_score_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    source_ptr: tl.tensor,
    y_ptr: tl.tensor,
    n: tl.tensor,
    D: tl.tensor,
    kv_b: tl.tensor,
    kv_s: tl.tensor,
    score_b: tl.tensor,
    score_s: tl.tensor,
    pending_row: tl.tensor,
    SLOTS: tl.constexpr,
    RATIO: tl.constexpr,
    P: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """The softmax of a window's scores, channel by channel, and the so weighted sum of its tokens."""
    wait_for_results()
    w = tl.program_id(0).to(tl.int64)
    b = w // n
    row = _cache_row(rows_ptr, b)
    s = tl.arange(0, SLOTS)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    channels = D * (SLOTS // RATIO)
    channel = (s // RATIO * D)[:, None] + d[None, :]  # of overlapping windows the second has the second channels
    source = tl.load(source_ptr + w * SLOTS + s)
    token = source - (P + 2)
    inside = (d < D)[None, :]
    old, new = (token < 0)[:, None] & inside, (token >= 0)[:, None] & inside
    before = row * pending_row + (source * channels)[:, None] + channel
    kv = tl.load(kv_ptr + b * kv_b + (token * kv_s)[:, None] + channel, mask=new, other=0.0)
    kv += tl.load(pending_kv_ptr + before, mask=old, other=0.0)
    score = tl.load(score_ptr + b * score_b + (token * score_s)[:, None] + channel, mask=new, other=0.0)
    score += tl.load(ape_ptr + (s % RATIO * channels)[:, None] + channel, mask=new, other=0.0)
    score += tl.load(pending_score_ptr + before, mask=old, other=0.0)
    p = tl.exp(score - tl.max(score, axis=0)[None, :])
    y = tl.sum(p * kv, axis=0) / tl.sum(p, axis=0)
    tl.store(y_ptr + w * D + d, cast(y, y_ptr.dtype.element_ty), mask=d < D)


@early_kernel
def _remember_kernel(
    kv_ptr: tl.tensor,
    score_ptr: tl.tensor,
    ape_ptr: tl.tensor,
    pending_kv_ptr: tl.tensor,
    pending_score_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    S: tl.tensor,
    C: tl.tensor,
    kv_b: tl.tensor,
    kv_s: tl.tensor,
    score_b: tl.tensor,
    score_s: tl.tensor,
    pending_row: tl.tensor,
    RATIO: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """A token's numbers to its slot, with ape added to the score; slot -1: to none."""
    wait_for_results()
    item = tl.program_id(0).to(tl.int64)
    b, t = item // S, item % S
    slot = tl.load(slots_ptr + item)
    if slot >= 0:
        c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        at = _cache_row(rows_ptr, b) * pending_row + slot * C + c
        tl.store(pending_kv_ptr + at, tl.load(kv_ptr + b * kv_b + t * kv_s + c, mask=c < C, other=0.0), mask=c < C)
        score = tl.load(score_ptr + b * score_b + t * score_s + c, mask=c < C, other=0.0)
        score += tl.load(ape_ptr + tl.load(positions_ptr + item) % RATIO * C + c, mask=c < C, other=0.0)
        tl.store(pending_score_ptr + at, score, mask=c < C)


def compress_windows(
    kv: Tensor, score: Tensor, ape: Tensor, pending_kv: Tensor, pending_score: Tensor, rows: Tensor | None,
    source: Tensor, pending_slot: Tensor, positions: Tensor, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """See `reference.compress_windows`. The ratio is a power of two."""
    (B, S, C), (ratio, P), (n, slots) = kv.shape, (len(ape), pending_kv.shape[1] - 2), source.shape[1:]
    D = C * ratio // slots
    whole = all(t.is_contiguous() for t in (ape, pending_kv, pending_score, source, pending_slot, positions))
    if ratio & (ratio - 1) or slots not in (ratio, 2 * ratio) or pending_kv.shape != pending_score.shape or not whole:
        raise ValueError(f"windows of {slots} tokens of ratio {ratio}; memory {tuple(pending_kv.shape)}, source {n}")
    kv, score = unit_columns(kv), unit_columns(score)
    y = torch.empty(B, n, D, dtype=dtype, device=kv.device)
    strides = (*kv.stride()[:2], *score.stride()[:2], pending_kv.stride(0))
    if n:
        block_d = min(next_power_of_2(D), max(16, 8192 // slots))
        _pool_kernel[(B * n, ceil_div(D, block_d))](
            kv, score, ape, pending_kv, pending_score, rows, source, y, n, D, *strides,
            SLOTS=slots, RATIO=ratio, P=P, BLOCK_D=block_d,
        )  # fmt: skip
    block_c = min(next_power_of_2(C), CHANNELS)
    _remember_kernel[(B * S, ceil_div(C, block_c))](
        kv, score, ape, pending_kv, pending_score, rows, pending_slot, positions, S, C, *strides,
        RATIO=ratio, BLOCK_C=block_c,
    )  # fmt: skip
    return y
