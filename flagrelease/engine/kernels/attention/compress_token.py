"""A compressor's step for the tokens of each row, in Triton.

Legend: B rows, T tokens, S parts, D width of an entry, c channels of a token (2D if windows overlap), P tokens that an
entry pools, N pending slots, R rotated columns. Program t remembers token t and, if that completes a window, pools it
into an entry. What it pools of the same step it takes from the parts: nobody waits for another program, and no slot
that one reads is written by another, since there are enough of them.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.attention.key_rows import index_row_bytes, row_bytes, store_index_key, store_key
from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, jit
from flagrelease.engine.kernels.layout import check_positions
from flagrelease.engine.kernels.reference.decoding import Rounding
from flagrelease.engine.kernels.row_vectors import (
    fp4_rounded,
    fp8_rounded,
    hadamard_signs,
    normed,
    rounded,
    sum_parts,
    turned,
    turns,
)

SLOTS = 8  # pooled at once


@jit
def _remember(
    kv_ptr: tl.tensor,
    score_ptr: tl.tensor,
    ape_ptr: tl.tensor,
    pending_kv_ptr: tl.tensor,
    pending_score_ptr: tl.tensor,
    channel: tl.tensor,
    kv_stride: tl.tensor,
    score_stride: tl.tensor,
    S: tl.constexpr,
) -> tl.tensor:
    """The token's numbers in some channels, stored and returned."""
    everywhere = channel >= 0
    kv = sum_parts(kv_ptr, channel, everywhere, kv_stride, S, S)
    score = sum_parts(score_ptr, channel, everywhere, score_stride, S, S) + tl.load(ape_ptr + channel)
    tl.store(pending_kv_ptr + channel, kv)
    tl.store(pending_score_ptr + channel, score)
    return kv, score


@jit
def _pool(
    kv: tl.tensor,
    score: tl.tensor,
    pending_kv: tl.tensor,
    pending_score: tl.tensor,
    kv_ptr: tl.tensor,
    score_ptr: tl.tensor,
    ape_ptr: tl.tensor,
    kv_part: tl.tensor,
    kv_token: tl.tensor,
    score_part: tl.tensor,
    score_token: tl.tensor,
    position: tl.tensor,
    first: tl.tensor,
    channels: tl.tensor,
    S: tl.constexpr,
    SEVERAL: tl.constexpr,
    D: tl.constexpr,
    RATIO: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """`reference.compress_pool` over the last P tokens, of which the newest, kv and score, is at hand.

    Those from position `first` on are in the step's parts, `kv_token` and `score_token` apart; `kv_ptr` and `score_ptr`
    are those of `first`. Tokens before are in the pending slots.
    """
    d = tl.arange(0, D)
    most, total, acc = score, tl.full((D,), 1.0, tl.float32), kv
    for start in range(0, P, BLOCK):
        j = start + tl.arange(0, BLOCK)
        token = position + 1 - P + j
        there = ((token >= 0) & (token < first))[:, None]
        half = tl.where(j < P - RATIO, 0, (P - RATIO) // RATIO * D)  # overlapping: own tokens' second channels
        at = (token % N * channels + half)[:, None] + d[None, :]
        other_score = tl.load(pending_score + at, mask=there, other=float("-inf"))
        other_kv = tl.load(pending_kv + at, mask=there, other=0.0)
        if SEVERAL:  # noqa: SIM102 - known to the compiler, so that the rest is left out
            if position + 1 - P + start + BLOCK > first:
                new = ((token >= first) & (token < position))[:, None]
                at = half[:, None] + d[None, :]
                step = tl.maximum(token - first, 0).to(tl.int64)[:, None]
                ape = tl.load(ape_ptr + (token % RATIO * channels)[:, None] + at, mask=new, other=0.0)
                new_kv = sum_parts(kv_ptr, step * kv_token + at, new, kv_part, S, S)
                new_score = sum_parts(score_ptr, step * score_token + at, new, score_part, S, S) + ape
                other_kv = tl.where(new, new_kv, other_kv)
                other_score = tl.where(new, new_score, other_score)
        above = tl.maximum(most, tl.max(other_score, axis=0))
        shrink = tl.exp(most - above)
        p = tl.exp(other_score - above[None, :])
        total = total * shrink + tl.sum(p, axis=0)
        acc = acc * shrink + tl.sum(p * other_kv, axis=0)
        most = above
    return acc / total


@early_kernel
def _compress_token_kernel(
    kv_ptr: tl.tensor,
    score_ptr: tl.tensor,
    ape_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    pending_kv_ptr: tl.tensor,
    pending_score_ptr: tl.tensor,
    entries_ptr: tl.tensor,
    kv_part: tl.tensor,
    kv_token: tl.tensor,
    score_part: tl.tensor,
    score_token: tl.tensor,
    B: tl.tensor,
    S: tl.constexpr,
    pending_row: tl.tensor,
    entries_row: tl.tensor,
    eps: tl.tensor,
    SEVERAL: tl.constexpr,
    ROUNDING: tl.constexpr,
    ROW: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    RATIO: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """`SEVERAL`: there may be several tokens of a row; the token after t of its row is t + B."""
    t = tl.program_id(0).to(tl.int64)
    b = t % B
    dtype: tl.constexpr = tl.bfloat16 if ROW > 0 else entries_ptr.dtype.element_ty
    channels: tl.constexpr = D * (P // RATIO)
    position = tl.load(positions_ptr + t).to(tl.int32)  # given to the step, nobody's result
    wait_for_results()
    if position >= 0:
        d = tl.arange(0, D)
        kv_token_ptr, score_token_ptr = kv_ptr + t * kv_token, score_ptr + t * score_token
        pending_kv, pending_score = pending_kv_ptr + b * pending_row, pending_score_ptr + b * pending_row
        slot = position % N * channels
        ape = ape_ptr + position % RATIO * channels
        kv, score = _remember(
            kv_token_ptr, score_token_ptr, ape, pending_kv + slot, pending_score + slot, d, kv_part, score_part, S
        )
        if P > RATIO:
            kv, score = _remember(
                kv_token_ptr, score_token_ptr, ape, pending_kv + slot, pending_score + slot, D + d,
                kv_part, score_part, S,
            )  # fmt: skip
        if (position + 1) % RATIO == 0:
            x = _pool(
                kv, score, pending_kv, pending_score, kv_ptr + b * kv_token, score_ptr + b * score_token, ape_ptr,
                kv_part, B * kv_token, score_part, B * score_token, position, position - (t // B).to(tl.int32),
                channels, S, SEVERAL, D, RATIO, P, N, BLOCK,
            )  # fmt: skip
            x = rounded(normed(rounded(x, dtype), tl.load(norm_ptr + d).to(tl.float32), D, eps), dtype)
            cos, sin = turns(cos_ptr, sin_ptr, position + 1 - RATIO, D, R)
            x = rounded(turned(x, cos, sin, D), dtype)
            entry = entries_ptr + b * entries_row + position // RATIO * (ROW if ROW > 0 else D)
            if ROUNDING == "fp8" and ROW > 0:
                store_key(x, entry, D)
            elif ROUNDING == "fp8":
                x = fp8_rounded(x, D, R, 64)
            elif ROUNDING != "none":
                x = rounded(tl.sum(x[:, None] * hadamard_signs(D), axis=0) * tl.rsqrt(D + 0.0), dtype)
                if ROW > 0:
                    store_index_key(x, entry, D)
                elif ROUNDING == "hadamard_fp4":
                    x = fp4_rounded(x, D)
            if ROW == 0:
                tl.store(entry + d, cast(x, dtype))


def compress_token(
    kv: Tensor, score: Tensor, ape: Tensor, norm: Tensor, eps: float, cos: Tensor, sin: Tensor, positions: Tensor,
    pending_kv: Tensor, pending_score: Tensor, entries: Tensor, rounding: Rounding,
) -> None:  # fmt: skip
    """See `reference.compress_token`. Entries have a power of two columns; their slots are contiguous."""
    S, T, channels = kv.shape
    D, ratio, slots = len(norm), len(ape), pending_kv.shape[1] - 2
    row = _row(entries, D, rounding)
    rows, pooled = len(entries), ratio * (channels // D)
    check_positions(positions, T)
    if channels % D or score.stride(-1) != 1 or kv.stride(-1) != 1:
        raise ValueError(f"{channels} channels of a token for entries of {D}")
    if T % rows or slots < pooled + T // rows - 1:
        raise ValueError(f"{T} tokens of {rows} rows at once, which pool {pooled} of {slots} slots")
    _compress_token_kernel[(T,)](
        kv, score, ape, norm, cos, sin, positions, pending_kv, pending_score, entries,
        kv.stride(0), kv.stride(1), score.stride(0), score.stride(1), rows, S,
        pending_kv.stride(0), entries.stride(0), eps, SEVERAL=rows < T,
        ROUNDING=rounding, ROW=row, D=D, R=2 * cos.shape[1], RATIO=ratio, P=pooled, N=slots, BLOCK=SLOTS,
        num_warps=8 if D > 256 or "hadamard" in rounding else 4,
    )  # fmt: skip


def _row(entries: Tensor, width: int, rounding: Rounding) -> int:
    """The bytes of a row of entries that are codes, 0 of plain ones. Rows of each kind hold what is rounded so."""
    if entries.dtype != torch.uint8:
        return row_bytes(entries, entries.dtype, width)
    if rounding not in ("fp8", "hadamard_fp4"):
        raise ValueError(f"entries as codes are rounded, not {rounding!r}")
    return (row_bytes if rounding == "fp8" else index_row_bytes)(entries, torch.bfloat16, width)
