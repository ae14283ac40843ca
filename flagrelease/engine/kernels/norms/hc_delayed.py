"""V4.1's delayed mHC in Triton: the streams' sum by weights that exist already, and the weights that come after.

What a sub-layer reads does not wait for its own mixes: those decide its output's way back, and the next one's input.
Legend: T tokens, M streams (BLOCK_M padded), H hidden size, N mixes a token, S parts of the mixes.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, rows
from flagrelease.engine.kernels.norms.hc_pre_norm import FEW, check_mixes
from flagrelease.engine.kernels.norms.hc_split_sinkhorn import gains, partial_sum, store_post_and_comb, stream_rho

COLUMNS = 1024  # of a program


@early_kernel
def _collapse_kernel(
    x_ptr: tl.tensor,
    pre_ptr: tl.tensor,
    y_ptr: tl.tensor,
    x_stride: tl.tensor,
    H: tl.tensor,
    M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    wait_for_results()
    t = tl.program_id(0).to(tl.int64)
    m, h = tl.arange(0, BLOCK_M), tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = (m < M)[:, None] & (h < H)[None, :]
    x = tl.load(x_ptr + t * x_stride + m[:, None] * H + h[None, :], mask=inside, other=0.0).to(tl.float32)
    pre = tl.load(pre_ptr + t * M + m, mask=m < M, other=0.0)
    tl.store(y_ptr + t * H + h, cast(tl.sum(pre[:, None] * x, axis=0), y_ptr.dtype.element_ty), mask=h < H)


@early_kernel
def _delayed_kernel(
    mixes_ptr: tl.tensor,
    squares_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    base_ptr: tl.tensor,
    pre_ptr: tl.tensor,
    post_ptr: tl.tensor,
    comb_ptr: tl.tensor,
    T: tl.tensor,
    count: tl.tensor,
    S: tl.tensor,
    iters: tl.tensor,
    eps: tl.tensor,
    norm_eps: tl.tensor,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
) -> None:
    m, s = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_S)
    pre_scale, pre_base = tl.load(scale_ptr), tl.load(base_ptr + m, mask=m < M, other=0.0)
    post_scale, post_base, comb_scale, comb_base = gains(scale_ptr, base_ptr, M, BLOCK_M)
    wait_for_results()
    t = tl.program_id(0).to(tl.int64)
    mixes, comb, post = mixes_ptr + t * N, comb_ptr + t * M * M, post_ptr + t * M
    rho = stream_rho(squares_ptr + s * T + t, s < S, count, norm_eps)
    pre = partial_sum(mixes + m, m < M, T * N, S, BLOCK_S) * rho
    tl.store(pre_ptr + t * M + m, tl.sigmoid(pre * pre_scale + pre_base) + eps, mask=m < M)
    store_post_and_comb(
        mixes, post_scale, post_base, comb_scale, comb_base, comb, post, rho, T * N, S, iters, eps, M, BLOCK_M, BLOCK_S
    )


def hc_collapse(x: Tensor, pre: Tensor) -> Tensor:
    """See `reference.v41.hc_collapse`."""
    *lead, M, H = x.shape
    if pre.shape != (*lead, M) or pre.dtype != torch.float32:
        raise ValueError(f"weights {pre.dtype} {tuple(pre.shape)} of streams {tuple(x.shape)}: FP32, one for each")
    x_rows = rows(x.flatten(-2))
    y = x.new_empty(*lead, H)
    block_h = min(COLUMNS, next_power_of_2(H))
    _collapse_kernel[(len(x_rows), ceil_div(H, block_h))](
        x_rows, pre.contiguous(), y, x_rows.stride(0), H, M=M, BLOCK_M=next_power_of_2(M), BLOCK_H=block_h
    )
    return y


def hc_delayed(
    x: Tensor, mixes: Tensor, squares: Tensor, scale: Tensor, base: Tensor, iters: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.v41.hc_delayed`."""
    T, M, H = x.shape
    check_mixes(x, mixes, squares, scale, base)
    S = len(mixes)
    pre = torch.empty(T, M, dtype=torch.float32, device=x.device)
    post, comb = torch.empty_like(pre), torch.empty(T, M, M, dtype=torch.float32, device=x.device)
    _delayed_kernel[(T,)](
        mixes, squares, scale.contiguous(), base.contiguous(), pre, post, comb, T, M * H, S, iters, eps, norm_eps,
        N=M * (M + 2), M=M, BLOCK_M=next_power_of_2(M), BLOCK_S=next_power_of_2(S), num_warps=1 if T > FEW else 4,
    )  # fmt: skip
    return pre, post, comb
