"""Indexer scores in Triton. Legend: B sequences, S queries, H index heads, N compressed entries, D index dimension."""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import dot
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, unit_columns


@early_kernel
def _indexer_scores_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    weights_ptr: tl.tensor,
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
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    wait_for_results()
    query = tl.program_id(0).to(tl.int64)
    b = query // S
    s = query % S
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    h = tl.arange(0, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
    q_inside = (h < H)[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + b * q_b + s * q_s + h[:, None] * q_h + d[None, :], mask=q_inside, other=0.0)
    k_inside = (n < N)[None, :] & (d < D)[:, None]
    k = tl.load(k_ptr + b * k_b + n[None, :] * k_n + d[:, None], mask=k_inside, other=0.0)
    weight = tl.load(weights_ptr + b * w_b + s * w_s + h, mask=h < H, other=0.0).to(tl.float32)
    scores = tl.maximum(dot(q, k, tl.zeros((BLOCK_H, BLOCK_N), tl.float32)), 0.0)
    tl.store(y_ptr + query * N + n, tl.sum(scores * weight[:, None], axis=0), mask=n < N)


def indexer_scores(q: Tensor, k: Tensor, weights: Tensor) -> Tensor:
    """See `reference.indexer_scores`."""
    B, S, H, D = q.shape
    if k.dtype != q.dtype or k.shape[0] != B or k.shape[2] != D or weights.shape != (B, S, H):
        raise ValueError(
            f"index scores of q {q.dtype} {tuple(q.shape)}, k {k.dtype} {tuple(k.shape)}, "
            f"weights {tuple(weights.shape)}"
        )
    q, k, weights = unit_columns(q), unit_columns(k), unit_columns(weights)
    N = k.shape[1]
    y = torch.empty(B, S, N, dtype=torch.float32, device=q.device)
    block_n = 128 if q.element_size() == 2 else 32
    _indexer_scores_kernel[(B * S, ceil_div(N, block_n))](
        q, k, weights, y, S, H, N, D, *q.stride()[:3], *k.stride()[:2], *weights.stride()[:2],
        BLOCK_H=max(16, next_power_of_2(H)), BLOCK_N=block_n, BLOCK_D=max(16, next_power_of_2(D)),
    )  # fmt: skip
    return y
