"""Indexer scores in Triton: a program keeps the keys of a tile and walks over queries.

Keys are the rows of the matrix unit and all heads its columns, so that the sum over heads stays among a few threads.
Legend: B sequences, S queries, H index heads, N compressed entries, D index dimension.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.attention.key_rows import index_row_bytes, load_index_keys
from flagrelease.engine.kernels.attention.pack_keys import unpacked_index_keys
from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import dot, jit
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, unit_columns
from flagrelease.engine.kernels.targets import TARGET

QUERIES = 64  # that a program walks over, where enough programs remain; as many pay for reading coded keys before


@jit
def entry_scores(
    k: tl.tensor, q: tl.tensor, weight: tl.tensor, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr
) -> tl.tensor:
    """Scores [BLOCK_N] of keys k [BLOCK_N, D] for one query q [BLOCK_H, D] with FP32 weights [BLOCK_H] of its heads."""
    scores = tl.maximum(dot(k, tl.trans(q), tl.zeros((BLOCK_N, BLOCK_H), tl.float32)), 0.0)
    return tl.sum(scores * weight[None, :], axis=1)


@early_kernel
def _indexer_scores_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    y_ptr: tl.tensor,
    S: tl.tensor,
    H: tl.tensor,
    N: tl.tensor,
    D: tl.tensor,
    q_b: tl.tensor,
    q_s: tl.tensor,
    q_h: tl.tensor,
    k_b: tl.tensor,
    k_n: tl.tensor,
    w_b: tl.tensor,
    w_s: tl.tensor,
    per_program: tl.tensor,
    ROW: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NEXT: tl.constexpr,
) -> None:
    wait_for_results(NEXT)
    b = tl.program_id(2).to(tl.int64)
    row = b
    if rows_ptr is not None:
        row = tl.load(rows_ptr + b).to(tl.int64)
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    h, d = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    keys = k_ptr + row * k_b
    if ROW == 0:
        k = tl.load(keys + n[:, None] * k_n + d[None, :], mask=(n < N)[:, None] & (d < D)[None, :], other=0.0)
    else:
        even, odd = load_index_keys(keys, n, n < N, q_ptr.dtype.element_ty, BLOCK_N, BLOCK_D, ROW, PTX)
        k = tl.reshape(tl.join(even, odd), (BLOCK_N, BLOCK_D))
    q_inside = (h < H)[:, None] & (d < D)[None, :]
    first = tl.program_id(1).to(tl.int64) * per_program
    for s in range(first, tl.minimum(first + per_program, S)):
        q = tl.load(q_ptr + b * q_b + s * q_s + h[:, None] * q_h + d[None, :], mask=q_inside, other=0.0)
        weight = tl.load(weights_ptr + b * w_b + s * w_s + h, mask=h < H, other=0.0).to(tl.float32)
        tl.store(y_ptr + (b * S + s) * N + n, entry_scores(k, q, weight, BLOCK_N, BLOCK_H), mask=n < N)


def indexer_scores(q: Tensor, k: Tensor, weights: Tensor, rows: Tensor | None = None) -> Tensor:
    """See `reference.indexer_scores`."""
    B, S, H, D = q.shape
    row = index_row_bytes(k, q.dtype, D)
    if weights.shape != (B, S, H) or (len(k) != B if rows is None else rows.shape != (B,)):
        raise ValueError(
            f"index scores of q {q.dtype} {tuple(q.shape)}, k {k.dtype} {tuple(k.shape)}, "
            f"weights {tuple(weights.shape)}"
        )
    if row and S >= QUERIES:
        k, rows, row = unpacked_index_keys(k, D, rows), None, 0
    q, k, weights = unit_columns(q), unit_columns(k), unit_columns(weights)
    N = k.shape[1]
    y = torch.empty(B, S, N, dtype=torch.float32, device=q.device)
    block_n, warps, stages = (128, 4, 3) if q.element_size() == 2 else (32, 4, 1)
    tiles = ceil_div(N, block_n)
    per_program = max(1, min(QUERIES, B * S * tiles // (8 * TARGET.sizes.filled)))
    programs = ceil_div(S, per_program)
    _indexer_scores_kernel[(tiles, programs, B)](
        q, k, weights, rows, y, S, H, N, D, *q.stride()[:3], *k.stride()[:2], *weights.stride()[:2], per_program,
        ROW=row, PTX=row > 0 and TARGET.multiplies_bf16_pairs,
        BLOCK_H=max(16, next_power_of_2(H)), BLOCK_N=block_n, BLOCK_D=max(16, next_power_of_2(D)),
        NEXT=tiles * programs * B < TARGET.sizes.filled, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y
