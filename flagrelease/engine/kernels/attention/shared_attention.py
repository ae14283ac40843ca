"""V4.1's attention in Triton: one softmax over a layer's own window and over entries that layers share.

Legend as in `sparse_attention`: a program computes BLOCK_H heads of one query, walking first the W positions of its
window, then its T entries. The two lists stay where they are, so that no cache is copied beside another.
"""
# ruff: noqa: N803  (dimensions of the legend)

import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.attention.sparse_attention import TILE, heads_of_program, in_rows, sparse_attention
from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, dot, jit
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, unit_columns
from flagrelease.engine.kernels.targets import TARGET


@jit
def _attended(
    q: tl.tensor,
    keys: tl.tensor,
    key_stride: tl.tensor,
    idx: tl.tensor,
    start: tl.tensor,
    T: tl.tensor,
    scale: tl.tensor,
    m: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    BLOCK_H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tl.tensor:
    """The running maximum, denominator and sum after the positions idx[start ..]."""
    t, d = start + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D)
    position = tl.load(idx + t, mask=t < T, other=-1).to(tl.int64)
    valid = position >= 0
    kv = tl.load(keys + position[:, None] * key_stride + d[None, :], mask=in_rows(valid, d, D, BLOCK_D), other=0.0)
    z = dot(q, tl.trans(kv), tl.zeros((BLOCK_H, BLOCK_T), tl.float32)) * scale
    z = tl.where(valid[None, :], z, float("-inf"))
    m_new = tl.maximum(m, tl.max(z, axis=1))
    # Until a valid position is met the maximum is -inf, and -inf - (-inf) would be NaN.
    m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp(z - m_safe[:, None])
    shrink = tl.exp(m - m_safe)
    return m_new, total * shrink + tl.sum(p, axis=1), dot(cast(p, kv.dtype), kv, acc * shrink[:, None])


@early_kernel
def _shared_attention_kernel(
    q_ptr: tl.tensor,
    window_ptr: tl.tensor,
    entries_ptr: tl.tensor,
    sink_ptr: tl.tensor,
    window_idx_ptr: tl.tensor,
    entry_idx_ptr: tl.tensor,
    o_ptr: tl.tensor,
    scale: tl.tensor,
    S: tl.tensor,
    H: tl.tensor,
    W: tl.tensor,
    T: tl.tensor,
    q_b: tl.tensor,
    q_s: tl.tensor,
    q_h: tl.tensor,
    window_b: tl.tensor,
    window_n: tl.tensor,
    entries_b: tl.tensor,
    entries_n: tl.tensor,
    window_idx_b: tl.tensor,
    window_idx_s: tl.tensor,
    entry_idx_b: tl.tensor,
    entry_idx_s: tl.tensor,
    BLOCK_H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NEXT: tl.constexpr,
) -> None:
    wait_for_results(NEXT)
    query = tl.program_id(0).to(tl.int64)
    b, s = query // S, query % S
    h, d = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    inside = in_rows(h < H, d, D, BLOCK_D)
    q = tl.load(q_ptr + b * q_b + s * q_s + h[:, None] * q_h + d[None, :], mask=inside, other=0.0)
    m = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    acc = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    idx, keys = window_idx_ptr + b * window_idx_b + s * window_idx_s, window_ptr + b * window_b
    for start in range(0, W, BLOCK_T):
        m, total, acc = _attended(
            q, keys, window_n, idx, start, W, scale, m, total, acc, BLOCK_H, BLOCK_T, D, BLOCK_D
        )  # fmt: skip
    entry_idx, entries = entry_idx_ptr + b * entry_idx_b + s * entry_idx_s, entries_ptr + b * entries_b
    for start in range(0, T, BLOCK_T):
        m, total, acc = _attended(
            q, entries, entries_n, entry_idx, start, T, scale, m, total, acc, BLOCK_H, BLOCK_T, D, BLOCK_D
        )
    sink = tl.load(sink_ptr + h, mask=h < H, other=0.0)
    total += tl.exp(sink - tl.where(m == float("-inf"), 0.0, m))
    o = o_ptr + (query * H + h[:, None]) * D + d[None, :]
    tl.store(o, cast(acc / total[:, None], o_ptr.dtype.element_ty), mask=inside)


def shared_attention(
    q: Tensor, window: Tensor, entries: Tensor | None, sink: Tensor, window_idx: Tensor, entry_idx: Tensor | None,
    scale: float,
) -> Tensor:  # fmt: skip
    """See `reference.v41.shared_attention`. Here exp(z - m) is rounded against the running maximum."""
    if entries is None or entry_idx is None:
        return sparse_attention(q, window, sink, window_idx, scale)
    B, S, H, D = q.shape
    keys = all(x.dtype == q.dtype and x.shape[::2] == (B, D) for x in (window, entries))
    if not keys or sink.shape != (H,) or any(idx.shape[:2] != (B, S) for idx in (window_idx, entry_idx)):
        raise ValueError(
            f"attention of q {q.dtype} {tuple(q.shape)}, window {window.dtype} {tuple(window.shape)}, entries "
            f"{entries.dtype} {tuple(entries.shape)}, sink {tuple(sink.shape)}, lists {tuple(window_idx.shape)} and "
            f"{tuple(entry_idx.shape)}"
        )
    q, window, entries, window_idx, entry_idx = map(unit_columns, (q, window, entries, window_idx, entry_idx))
    o = q.new_empty(B, S, H, D)
    block_t, most_heads, stages = TILE if q.element_size() == 2 else (16, 64, 1)
    block_h = min(heads_of_program(B * S, H), most_heads)
    programs = B * S * ceil_div(H, block_h)
    _shared_attention_kernel[(B * S, ceil_div(H, block_h))](
        q, window, entries, sink.float().contiguous(), window_idx, entry_idx, o, scale, S, H, window_idx.shape[2],
        entry_idx.shape[2], *q.stride()[:3], *window.stride()[:2], *entries.stride()[:2], *window_idx.stride()[:2],
        *entry_idx.stride()[:2], BLOCK_H=block_h, BLOCK_T=block_t, D=D, BLOCK_D=max(16, next_power_of_2(D)),
        NEXT=programs < TARGET.sizes.filled, num_warps=8 if block_h == 64 else 4, num_stages=stages,
    )  # fmt: skip
    return o
