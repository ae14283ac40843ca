"""Attention of each query in Triton, its keys divided over programs and the parts joined (flash decoding).

Legend: B rows of the cache, T queries, H heads, N slots, D head dimension, R rotated columns, K chosen entries,
W window. K + W positions are listed, in P parts. The list is never stored: a program computes its slots from the newest
position that its query sees.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.attention.key_rows import decoded_keys, fetch_keys, row_bytes
from flagrelease.engine.kernels.early_launch import early_kernel, prefetch_rows, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, dot, jit
from flagrelease.engine.kernels.layout import (
    ceil_div,
    check_positions,
    check_tokens,
    next_power_of_2,
)
from flagrelease.engine.kernels.row_vectors import rounded, stepwise_factor, store_scaled, turned, turns, turns_of
from flagrelease.engine.kernels.targets import TARGET
from flagrelease.engine.kernels.weights import FP8_BLOCK

MOST_PARTS = 64  # that are joined at once
MANY_QUERIES = 32  # that fill it with few programs each
MANY_LISTED = 4096  # positions of all queries that are worth larger tiles


@jit
def _queries(
    q: tl.tensor,
    inside: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    eps: tl.tensor,
    dtype: tl.constexpr,
    STEPWISE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    D: tl.constexpr,
) -> tl.tensor:
    """The heads at pointers `q` [BLOCK_H], normed and turned by cos and sin [D/2]: [BLOCK_H, D]."""
    x = tl.load(q[:, None] + tl.arange(0, D)[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(x, (BLOCK_H, D // 2, 2)))
    if STEPWISE:
        squares = rounded(even * even, dtype) + rounded(odd * odd, dtype)
        rho = stepwise_factor(tl.sum(squares, axis=1), D, eps, dtype)[:, None]
    else:
        rho = tl.rsqrt(tl.sum(even * even + odd * odd, axis=1) / D + eps)[:, None]
    even, odd = cast(even * rho, dtype).to(tl.float32), cast(odd * rho, dtype).to(tl.float32)
    x = tl.join(even * cos[None, :] - odd * sin[None, :], even * sin[None, :] + odd * cos[None, :])
    return cast(tl.reshape(x, (BLOCK_H, D)), dtype)


@jit
def _slots(
    j: tl.tensor,
    chosen_ptr: tl.tensor,
    newest: tl.tensor,
    first: tl.tensor,
    ring: tl.tensor,
    K: tl.tensor,
    W: tl.tensor,
    ratio: tl.tensor,
) -> tl.tensor:
    """The cache slots of listed positions j, -1 where there is none."""
    back = newest - (W - 1) + (j - K)
    slot = tl.where((j >= K) & (j < K + W) & (back >= 0), first + back % ring, -1)
    if chosen_ptr is not None:
        slot = tl.where(j < K, tl.load(chosen_ptr + j, mask=j < K, other=-1), slot)
    else:
        slot = tl.where((j < K) & ((j + 1) * ratio <= newest + 1), j, slot)
    return tl.where(newest >= 0, slot, -1)


@jit
def _ask_for(kv: tl.tensor, slot: tl.tensor, D: tl.constexpr, BLOCK_T: tl.constexpr, ROW: tl.constexpr) -> None:
    """Start the keys of slots [BLOCK_T] on their way to the cache; which of them exist does not matter."""
    bits: tl.constexpr = kv.dtype.element_ty.primitive_bitwidth  # Triton 3.2 does not divide what has no name yet
    size: tl.constexpr = ROW if ROW > 0 else D * bits // 8
    rows = kv.to(tl.pointer_type(tl.uint8)) + tl.maximum(slot, 0) * size
    prefetch_rows(rows, BLOCK_T, size)


@early_kernel
def _part_kernel(
    q_ptr: tl.tensor,
    kv_ptr: tl.tensor,
    chosen_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    newest_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    acc_ptr: tl.tensor,
    most_ptr: tl.tensor,
    total_ptr: tl.tensor,
    scale: tl.tensor,
    eps: tl.tensor,
    q_token: tl.tensor,
    B: tl.tensor,
    kv_row: tl.tensor,
    H: tl.tensor,
    first: tl.tensor,
    ring: tl.tensor,
    K: tl.tensor,
    W: tl.tensor,
    ratio: tl.tensor,
    per_part: tl.tensor,
    STEPWISE: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    ROW: tl.constexpr,
    PTX: tl.constexpr,
    SINGLE: tl.constexpr,
) -> None:
    """Part p of query t for some heads: the sum over its positions, the maximum and the denominator there.

    KEYS is the axis of scores on which positions lie. 1: heads are the rows of the matrix unit, which has room for 16.
    0: positions are, which it then takes from where they were copied to, while many heads stay in its columns.
    """
    t, p = tl.program_id(0).to(tl.int64), tl.program_id(2)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    d = tl.arange(0, D)
    dtype = q_ptr.dtype.element_ty
    position = tl.load(positions_ptr + t).to(tl.int32)  # given to the step, nobody's result
    newest = position
    if newest_ptr is not None:
        newest = tl.load(newest_ptr + t).to(tl.int32)
    kv_ptr += t % B * kv_row
    cos, sin = turns(cos_ptr, sin_ptr, tl.maximum(position, 0), D, R)
    at = p * per_part + tl.arange(0, BLOCK_T)
    if chosen_ptr is None:
        _ask_for(kv_ptr, _slots(at, chosen_ptr, newest, first, ring, K, W, ratio), D, BLOCK_T, ROW)
    wait_for_results()
    chosen = chosen_ptr
    if chosen_ptr is not None:
        chosen = chosen_ptr + t * K
        _ask_for(kv_ptr, _slots(at, chosen, newest, first, ring, K, W, ratio), D, BLOCK_T, ROW)
    q = _queries(q_ptr + t * q_token + h * D, h < H, cos, sin, eps, dtype, STEPWISE, BLOCK_H, D)
    most = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    if KEYS == 0:
        q = tl.trans(q)
        acc = tl.zeros((D, BLOCK_H), tl.float32)
    else:
        acc = tl.zeros((BLOCK_H, D), tl.float32)
    end = tl.minimum((p + 1) * per_part, K + W)
    if ROW > 0:
        # Keys go from one turn of the loop to the next, so that a tile is fetched while the one before is multiplied;
        # and Triton leaves what enters a turn in shared memory, where registers would not hold it as an operand.
        slot = _slots(at, chosen, newest, first, ring, K, W, ratio)
        low, high, exponent = fetch_keys(kv_ptr, slot, D, ROW)
        kv = decoded_keys(low, high, exponent, dtype, BLOCK_T, D, PTX)
    for start in range(p * per_part, end, BLOCK_T):
        if ROW == 0:
            slot = _slots(start + tl.arange(0, BLOCK_T), chosen, newest, first, ring, K, W, ratio)
            kv = tl.load(kv_ptr + slot[:, None] * D + d[None, :], mask=(slot >= 0)[:, None], other=0.0)
        elif not SINGLE:
            later = _slots(start + BLOCK_T + tl.arange(0, BLOCK_T), chosen, newest, first, ring, K, W, ratio)
            later = tl.where(start + BLOCK_T < end, later, -1)
            low, high, exponent = fetch_keys(kv_ptr, later, D, ROW)
        if KEYS == 0:
            z = dot(kv, q, tl.zeros((BLOCK_T, BLOCK_H), tl.float32)) * scale
        else:
            z = dot(q, tl.trans(kv), tl.zeros((BLOCK_H, BLOCK_T), tl.float32)) * scale
        z = tl.where(tl.expand_dims(slot >= 0, 1 - KEYS), z, float("-inf"))
        above = tl.maximum(most, tl.max(z, axis=KEYS))
        # Until a valid position is met the maximum is -inf, and -inf - (-inf) would be NaN.
        safe = tl.where(above == float("-inf"), 0.0, above)
        prob = tl.exp(z - tl.expand_dims(safe, KEYS))
        shrink = tl.exp(most - safe)
        total = total * shrink + tl.sum(prob, axis=KEYS)
        acc = acc * tl.expand_dims(shrink, KEYS)
        acc = dot(tl.trans(kv), cast(prob, dtype), acc) if KEYS == 0 else dot(cast(prob, dtype), kv, acc)
        most = above
        if ROW > 0 and not SINGLE:
            slot = later
            kv = decoded_keys(low, high, exponent, dtype, BLOCK_T, D, PTX)
    if KEYS == 0:
        acc = tl.trans(acc)
    row = (t * tl.num_programs(2) + p) * H + h
    tl.store(acc_ptr + row[:, None] * D + d[None, :], acc, mask=(h < H)[:, None])
    tl.store(most_ptr + row, most, mask=h < H)
    tl.store(total_ptr + row, total, mask=h < H)


@early_kernel
def _join_kernel(
    acc_ptr: tl.tensor,
    most_ptr: tl.tensor,
    total_ptr: tl.tensor,
    sink_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    o_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    H: tl.tensor,
    P: tl.tensor,
    D: tl.constexpr,
    R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Some columns of one head of one query: the parts joined, the sink added, the result rotated back."""
    t, h, first = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2) * BLOCK_D
    pair = first // 2 + tl.arange(0, BLOCK_D // 2)
    cos, sin = turns_of(cos_ptr, sin_ptr, tl.maximum(tl.load(positions_ptr + t), 0), pair, D, R)
    sink = tl.load(sink_ptr + h)
    wait_for_results()
    p, d = tl.arange(0, BLOCK_P), first + tl.arange(0, BLOCK_D)
    dtype: tl.constexpr = o_ptr.dtype.element_ty if scales_ptr is None else tl.bfloat16
    row = (t * P + p) * H + h
    most = tl.load(most_ptr + row, mask=p < P, other=float("-inf"))
    safe = tl.max(most, axis=0)
    safe = tl.where(safe == float("-inf"), 0.0, safe)
    share = tl.exp(most - safe)
    total = tl.sum(tl.load(total_ptr + row, mask=p < P, other=0.0) * share, axis=0)
    total += tl.exp(sink - safe)
    inside = (p < P)[:, None]
    parts = tl.load(acc_ptr + row.to(tl.int64)[:, None] * D + d[None, :], mask=inside, other=0.0)
    o = tl.sum(parts * share[:, None], axis=0)
    o = rounded(turned(rounded(o / total, dtype), cos, -sin, BLOCK_D), dtype)
    at = (t * H + h) * D + first
    if scales_ptr is not None:
        store_scaled(o, o_ptr + at, scales_ptr + at // 128, BLOCK_D)
    else:
        tl.store(o_ptr + at + tl.arange(0, BLOCK_D), cast(o, dtype))


def decode_attention(
    q: Tensor, kv: Tensor, sink: Tensor, chosen: Tensor | None, positions: Tensor, cos: Tensor, sin: Tensor, first: int,
    window: int, ratio: int, entries: int, eps: float, scaled: bool, stepwise: bool,
    newest: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """See `reference.decode_attention`. Heads have a power of two columns, 16 or more, and are contiguous."""
    T, H, D = q.shape
    check_tokens(T, kv)
    check_positions(positions, T)
    if newest is not None:
        check_positions(newest, T)
    row = row_bytes(kv, q.dtype, D)
    if q.stride(2) != 1 or q.stride(1) != D:
        raise ValueError(f"attention of q {q.dtype} {tuple(q.shape)} over kv {kv.dtype} {tuple(kv.shape)}")
    if scaled and (q.dtype != torch.bfloat16 or D % FP8_BLOCK):
        raise ValueError(f"FP16 and scales for {D} columns of {q.dtype}: BF16 in groups of {FP8_BLOCK}")
    K = entries if chosen is None else chosen.shape[1]
    tile = _tile(T, K + window, coded=row > 0, single=q.element_size() == 4)
    step, programs = tile["BLOCK_T"], TARGET.sizes.multiprocessors * 8 // tile["num_warps"]
    steps, blocks = ceil_div(K + window, step), ceil_div(H, tile["BLOCK_H"])
    parts = max(1, min(steps, MOST_PARTS, programs // (T * blocks)))
    per_part = ceil_div(steps, parts) * step
    parts = ceil_div(K + window, per_part)
    acc = torch.empty(T, parts, H, D, dtype=torch.float32, device=q.device)
    most = torch.empty(T, parts, H, dtype=torch.float32, device=q.device)
    total = torch.empty(T, parts, H, dtype=torch.float32, device=q.device)
    _part_kernel[(T, blocks, parts)](
        q, kv, None if chosen is None else chosen.contiguous(), positions, newest, cos, sin, acc, most, total,
        D**-0.5, eps, q.stride(0), len(kv), kv.stride(0), H, first, kv.shape[1] - 1 - first, K, window, ratio, per_part,
        STEPWISE=stepwise, D=D, R=2 * cos.shape[1], ROW=row, PTX=row > 0 and TARGET.multiplies_bf16_pairs,
        SINGLE=per_part == step, num_stages=2, **tile,
    )  # fmt: skip
    o = torch.empty(T, H, D, dtype=torch.float16 if scaled else q.dtype, device=q.device)
    scales = torch.empty(T, H, D // FP8_BLOCK, dtype=torch.float32, device=q.device) if scaled else None
    columns, warps = _join_tile(D, parts)
    _join_kernel[(T, H, D // columns)](
        acc, most, total, sink, positions, cos, sin, o, scales, H, parts,
        D=D, R=2 * cos.shape[1], BLOCK_P=next_power_of_2(parts), BLOCK_D=columns, num_warps=warps,
    )  # fmt: skip
    return o, scales


def _join_tile(columns: int, parts: int) -> tuple[int, int]:
    """Columns of a program that joins parts, and its warps; only speed depends on them."""
    return (columns, 4 if parts > 4 else 2) if parts <= 32 else (min(columns, 128), 4)


def _tile(queries: int, listed: int, *, coded: bool, single: bool) -> dict[str, int]:
    """Tile sizes; only speed depends on them. `coded`: rows of codes; `single`: FP32, which takes twice the memory."""
    if single:
        return {"KEYS": 1, "BLOCK_H": 16, "BLOCK_T": 16, "num_warps": 4}
    if queries < MANY_QUERIES and queries * listed >= MANY_LISTED and TARGET.multiplies_from_shared_memory:
        return {"KEYS": 0, "BLOCK_H": 32, "BLOCK_T": 64, "num_warps": 8}
    if queries < MANY_QUERIES or not TARGET.multiplies_from_shared_memory:  # as few heads as the matrix unit takes
        # A single one has fewer programs than the chip has multiprocessors: each may have twice the threads.
        return {"KEYS": 1, "BLOCK_H": 16, "BLOCK_T": 32, "num_warps": 8 if queries == 1 else 4}
    return {"KEYS": 0, "BLOCK_H": 64, "BLOCK_T": 32 if coded else 64, "num_warps": 8}
