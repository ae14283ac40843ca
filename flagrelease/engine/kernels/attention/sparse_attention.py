"""Sparse multi-query attention with a sink, in Triton.

Legend: B sequences, S queries, H heads (padded to 16 or more, which the matrix unit needs), N positions, D head
dimension, T listed positions a query. A program computes BLOCK_H heads of one query, walking its list in BLOCK_Ts.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.attention.key_rows import decoded_keys, fetch_keys, row_bytes
from flagrelease.engine.kernels.attention.pack_keys import unpacked_keys
from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, dot, jit
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, unit_columns
from flagrelease.engine.kernels.targets import KIB, TARGET, Target

OFTEN = 8  # readings of a coded key on average, from which on it pays to read them all once before
MANY_QUERIES = 256  # from here on programs fill a chip without splitting the heads


def _tile(target: Target, triton_version: str = triton.__version__) -> tuple[int, int, int]:
    """Positions a step, heads a program, loads in flight, at d = 512.

    Triton before 3.2 fails on more than the smallest: its pipeliner on keys whose addresses are loaded too, its layouts
    on the larger tile. That takes 193 KiB of shared memory, and 257 where sums are in tensor memory (Triton 3.9, 10.0).
    """
    new = tuple(map(int, triton_version.split(".")[:2])) >= (3, 2)
    if not new or target.sizes.shared_memory < 193 * KIB:
        return 32, 32, 1
    return (32, 64, 2) if target.sums_in_tensor_memory else (64, 64, 2)


TILE = _tile(TARGET)


@jit
def in_rows(rows: tl.tensor, d: tl.tensor, D: tl.constexpr, BLOCK_D: tl.constexpr) -> tl.tensor:
    """Mask of the D columns of some rows. Whole rows have no need of one for each column, which costs a tenth."""
    if D == BLOCK_D:
        return rows[:, None]
    else:  # noqa: RET505 - Triton compiles what follows a return
        return rows[:, None] & (d < D)[None, :]


@early_kernel
def _sparse_attention_kernel(
    q_ptr: tl.tensor,
    kv_ptr: tl.tensor,
    sink_ptr: tl.tensor,
    idx_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    o_ptr: tl.tensor,
    scale: tl.tensor,
    S: tl.tensor,
    H: tl.tensor,
    T: tl.tensor,
    q_b: tl.tensor,
    q_s: tl.tensor,
    q_h: tl.tensor,
    kv_b: tl.tensor,
    kv_n: tl.tensor,
    idx_b: tl.tensor,
    idx_s: tl.tensor,
    BLOCK_H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROW: tl.constexpr,
    PTX: tl.constexpr,
    NEXT: tl.constexpr,
) -> None:
    wait_for_results(NEXT)
    query = tl.program_id(0).to(tl.int64)
    b = query // S
    s = query % S
    row = b
    if rows_ptr is not None:
        row = tl.load(rows_ptr + b).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
    inside = in_rows(h < H, d, D, BLOCK_D)
    q = tl.load(q_ptr + b * q_b + s * q_s + h[:, None] * q_h + d[None, :], mask=inside, other=0.0)

    m = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    acc = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        position = tl.load(idx_ptr + b * idx_b + s * idx_s + t, mask=t < T, other=-1).to(tl.int64)
        valid = position >= 0
        keys = kv_ptr + row * kv_b
        if ROW == 0:
            at = keys + position[:, None] * kv_n + d[None, :]
            kv = tl.load(at, mask=in_rows(valid, d, D, BLOCK_D), other=0.0)
        else:
            low, high, exponent = fetch_keys(keys, position, D, ROW)
            kv = decoded_keys(low, high, exponent, q_ptr.dtype.element_ty, BLOCK_T, D, PTX)
        z = dot(q, tl.trans(kv), tl.zeros((BLOCK_H, BLOCK_T), tl.float32)) * scale
        z = tl.where(valid[None, :], z, float("-inf"))
        m_new = tl.maximum(m, tl.max(z, axis=1))
        # Until a valid position is met the maximum is -inf, and -inf - (-inf) would be NaN.
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp(z - m_safe[:, None])
        shrink = tl.exp(m - m_safe)
        total = total * shrink + tl.sum(p, axis=1)
        acc = dot(cast(p, kv.dtype), kv, acc * shrink[:, None])
        m = m_new

    sink = tl.load(sink_ptr + h, mask=h < H, other=0.0)
    total += tl.exp(sink - tl.where(m == float("-inf"), 0.0, m))
    o = o_ptr + (query * H + h[:, None]) * D + d[None, :]
    tl.store(o, cast(acc / total[:, None], o_ptr.dtype.element_ty), mask=inside)


def sparse_attention(
    q: Tensor, kv: Tensor, sink: Tensor, idx: Tensor, scale: float, rows: Tensor | None = None
) -> Tensor:
    """See `reference.sparse_attention`. Here exp(z - m) is rounded against the running maximum, as upstream does."""
    B, S, H, D = q.shape
    T = idx.shape[-1]
    coded = kv.dtype == torch.uint8
    row = row_bytes(kv, q.dtype, D) if coded else 0
    fits = (coded or (kv.dtype == q.dtype and kv.shape[2] == D)) and idx.shape[:2] == (B, S) and sink.shape == (H,)
    if not fits or (len(kv) != B if rows is None else rows.shape != (B,)):
        raise ValueError(
            f"attention of q {q.dtype} {tuple(q.shape)}, kv {kv.dtype} {tuple(kv.shape)}, sink {tuple(sink.shape)}, "
            f"idx {tuple(idx.shape)}"
        )
    if coded and idx.numel() >= OFTEN * B * kv.shape[1]:
        kv, rows, row = unpacked_keys(kv, D, rows), None, 0
    q, kv, idx = unit_columns(q), unit_columns(kv), unit_columns(idx)
    o = q.new_empty(B, S, H, D)
    block_t, most_heads, stages = TILE if q.element_size() == 2 else (16, 64, 1)
    block_h = min(heads_of_program(B * S, H), most_heads)
    programs = B * S * ceil_div(H, block_h)
    _sparse_attention_kernel[(B * S, ceil_div(H, block_h))](
        q, kv, sink.float().contiguous(), idx, rows, o, scale, S, H, T, *q.stride()[:3], *kv.stride()[:2],
        *idx.stride()[:2], BLOCK_H=block_h, BLOCK_T=block_t, D=D, BLOCK_D=max(16, next_power_of_2(D)),
        ROW=row, PTX=row > 0 and TARGET.multiplies_bf16_pairs, NEXT=programs < TARGET.sizes.filled,
        num_warps=8 if block_h == 64 else 4, num_stages=stages,
    )  # fmt: skip
    return o


def heads_of_program(queries: int, heads: int) -> int:
    """Of a program: as many as leave enough programs, for each reads the keys."""
    most = max(16, next_power_of_2(heads))
    if queries >= MANY_QUERIES:
        return min(64, most)
    return min(32, most) if queries * ceil_div(heads, 32) >= TARGET.sizes.filled else 16
