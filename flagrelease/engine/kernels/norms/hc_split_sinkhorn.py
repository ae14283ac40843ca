"""Stream weights of mHC in Triton. Legend: T tokens, M streams (BLOCK_M padded), N = 2M + M*M mixes a token.

The mixes may come in S parts that are still to be added (`hc_pre` splits the product that makes them).
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import jit
from flagrelease.engine.kernels.layout import next_power_of_2, rows


@jit
def _doubly_stochastic(comb: tl.tensor, inside: tl.tensor, iters: tl.tensor, eps: tl.tensor) -> tl.tensor:
    """Row softmax + eps, then alternate normalisations that end on the columns. Padding is and stays 0."""
    comb = tl.where(inside, comb, float("-inf"))
    comb = tl.exp(comb - tl.maximum(tl.max(comb, axis=1), -3.0e38)[:, None])
    comb = tl.where(inside, comb / tl.maximum(tl.sum(comb, axis=1), 1.0)[:, None] + eps, 0.0)
    comb = comb / (tl.sum(comb, axis=0) + eps)[None, :]
    for _ in range(iters - 1):
        comb = comb / (tl.sum(comb, axis=1) + eps)[:, None]
        comb = comb / (tl.sum(comb, axis=0) + eps)[None, :]
    return comb


@jit
def partial_sum(
    parts: tl.tensor, inside: tl.tensor, split_stride: tl.tensor, S: tl.tensor, BLOCK_S: tl.constexpr
) -> tl.tensor:
    """The sum over S of a vector's parts, split_stride apart."""
    s = tl.arange(0, BLOCK_S)[:, None]
    return tl.sum(tl.load(parts[None, :] + s * split_stride, mask=(s < S) & inside[None, :], other=0.0), axis=0)


@jit
def stream_rho(squares: tl.tensor, inside: tl.tensor, count: tl.tensor, eps: tl.tensor) -> tl.tensor:
    """One over the root mean square of `count` values, from parts of their sum of squares."""
    return tl.rsqrt(tl.sum(tl.load(squares, mask=inside, other=0.0), axis=0) / count + eps)


@jit
def gains(scale_ptr: tl.tensor, base_ptr: tl.tensor, M: tl.constexpr, BLOCK_M: tl.constexpr) -> tl.tensor:
    """What post and comb are multiplied by, and what is added: weights, to be loaded before others' results."""
    j = tl.arange(0, BLOCK_M)
    at = 2 * M + j[:, None] * M + j[None, :]
    inside = (j < M)[:, None] & (j < M)[None, :]
    post_base = tl.load(base_ptr + M + j, mask=j < M, other=0.0)
    comb_base = tl.load(base_ptr + at, mask=inside, other=0.0)
    return tl.load(scale_ptr + 1), post_base, tl.load(scale_ptr + 2), comb_base


@jit
def store_post_and_comb(
    mixes: tl.tensor,
    post_scale: tl.tensor,
    post_base: tl.tensor,
    comb_scale: tl.tensor,
    comb_base: tl.tensor,
    comb_ptr: tl.tensor,
    post_ptr: tl.tensor,
    rho: tl.tensor,
    split_stride: tl.tensor,
    S: tl.tensor,
    iters: tl.tensor,
    eps: tl.tensor,
    M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
) -> None:
    """post and comb of one token from its S partial mixes, by `gains`."""
    j = tl.arange(0, BLOCK_M)
    # Flat, so that the matrix lands in one warp: its sums would take a barrier each if it were spread.
    flat = tl.arange(0, BLOCK_M * BLOCK_M)
    row, column = flat // BLOCK_M, flat % BLOCK_M
    flat_at, flat_inside = 2 * M + row * M + column, (row < M) & (column < M)
    inside = (j < M)[:, None] & (j < M)[None, :]
    post = partial_sum(mixes + M + j, j < M, split_stride, S, BLOCK_S) * rho
    comb = partial_sum(mixes + flat_at, flat_inside, split_stride, S, BLOCK_S)
    comb = tl.reshape(comb, (BLOCK_M, BLOCK_M)) * rho
    tl.store(post_ptr + j, 2.0 * tl.sigmoid(post * post_scale + post_base), mask=j < M)
    comb = comb * comb_scale + comb_base
    comb = _doubly_stochastic(comb, inside, iters, eps)
    tl.store(comb_ptr + j[:, None] * M + j[None, :], comb, mask=inside)


@early_kernel
def _split_kernel(
    mixes_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    base_ptr: tl.tensor,
    pre_ptr: tl.tensor,
    post_ptr: tl.tensor,
    comb_ptr: tl.tensor,
    iters: tl.tensor,
    eps: tl.tensor,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> None:
    t = tl.program_id(0).to(tl.int64)
    mixes = mixes_ptr + t * N
    j = tl.arange(0, BLOCK_M)
    pre_scale, pre_base = tl.load(scale_ptr), tl.load(base_ptr + j, mask=j < M, other=0.0)
    post_scale, post_base, comb_scale, comb_base = gains(scale_ptr, base_ptr, M, BLOCK_M)
    wait_for_results()
    pre = tl.load(mixes + j, mask=j < M, other=0.0) * pre_scale
    pre = tl.sigmoid(pre + pre_base) + eps
    tl.store(pre_ptr + t * M + j, pre, mask=j < M)
    comb, post = comb_ptr + t * M * M, post_ptr + t * M
    # Room for two parts though there is one, and one warp: Triton 3.0 crashes on a leading dimension of 1.
    store_post_and_comb(
        mixes, post_scale, post_base, comb_scale, comb_base, comb, post, 1.0, 0, 1, iters, eps, M, BLOCK_M, 2
    )


def hc_split_sinkhorn(
    mixes: Tensor, scale: Tensor, base: Tensor, n: int, iters: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.hc_split_sinkhorn`. FP32."""
    N = n * (n + 2)
    if mixes.dtype != torch.float32 or mixes.shape[-1] != N or base.shape != (N,) or scale.shape != (3,):
        raise ValueError(f"mixes {mixes.dtype} {tuple(mixes.shape)} of {n} streams: FP32 [.., {N}] with 3 scales")
    lead = mixes.shape[:-1]
    mixes = rows(mixes).contiguous()
    pre, post, comb = mixes.new_empty(*lead, n), mixes.new_empty(*lead, n), mixes.new_empty(*lead, n, n)
    _split_kernel[(len(mixes),)](
        mixes, scale.contiguous(), base.contiguous(), pre, post, comb, iters, eps,
        N=N, M=n, BLOCK_M=next_power_of_2(n), num_warps=1,
    )  # fmt: skip
    return pre, post, comb
