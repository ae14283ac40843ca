"""mHC before a sub-layer and before the head, in Triton: two launches at any batch, the mixes and what uses them.

Legend: T tokens, M streams (BLOCK_M padded), H hidden size, N mixes a token, S parts of the mixes.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, rows
from flagrelease.engine.kernels.norms.hc_mixes import mixes_of
from flagrelease.engine.kernels.norms.hc_split_sinkhorn import gains, partial_sum, store_post_and_comb, stream_rho


@early_kernel
def _pre_kernel(
    x_ptr: tl.tensor,
    mixes_ptr: tl.tensor,
    squares_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    base_ptr: tl.tensor,
    y_ptr: tl.tensor,
    post_ptr: tl.tensor,
    comb_ptr: tl.tensor,
    x_stride: tl.tensor,
    T: tl.tensor,
    H: tl.tensor,
    S: tl.tensor,
    iters: tl.tensor,
    eps: tl.tensor,
    norm_eps: tl.tensor,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """y = sum_j pre_j x_j for a block of columns; the first block also stores post and comb (hc_head has none)."""
    wait_for_results()
    t = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, BLOCK_S)
    rho = stream_rho(squares_ptr + s * T + t, s < S, M * H, norm_eps)
    mixes = mixes_ptr + t * N
    j = tl.arange(0, BLOCK_M)
    pre = partial_sum(mixes + j, j < M, T * N, S, BLOCK_S) * rho
    pre = tl.sigmoid(pre * tl.load(scale_ptr) + tl.load(base_ptr + j, mask=j < M, other=0.0)) + eps
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = (j < M)[:, None] & (h < H)[None, :]
    x = tl.load(x_ptr + t * x_stride + j[:, None] * H + h[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + t * H + h, cast(tl.sum(pre[:, None] * x, axis=0), y_ptr.dtype.element_ty), mask=h < H)
    # Two conditions in one `and` would be evaluated at run time, where a pointer that is None has no code.
    if post_ptr is not None:  # noqa: SIM102
        if tl.program_id(1) == 0:
            comb, post = comb_ptr + t * M * M, post_ptr + t * M
            post_scale, post_base, comb_scale, comb_base = gains(scale_ptr, base_ptr, M, BLOCK_M)
            store_post_and_comb(
                mixes, post_scale, post_base, comb_scale, comb_base, comb, post, rho, T * N, S, iters, eps,
                M, BLOCK_M, BLOCK_S,
            )  # fmt: skip


def hc_pre(
    x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, iters: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.hc_pre`."""
    *lead, M, _ = x.shape
    post = torch.empty(*lead, M, dtype=torch.float32, device=x.device)
    comb = torch.empty(*lead, M, M, dtype=torch.float32, device=x.device)
    if scale.shape != (3,):
        raise ValueError(f"hc_pre takes 3 scales, not {tuple(scale.shape)}")
    return _launch(x, fn, scale, base, post, comb, M * (M + 2), iters, eps, norm_eps), post, comb


def hc_head(x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, eps: float, norm_eps: float) -> Tensor:
    """See `reference.hc_head`."""
    if scale.shape != (1,):
        raise ValueError(f"hc_head takes 1 scale, not {tuple(scale.shape)}")
    return _launch(x, fn, scale, base, None, None, x.shape[-2], 0, eps, norm_eps)


def _launch(
    x: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    post: Tensor | None,
    comb: Tensor | None,
    N: int,
    iters: int,
    eps: float,
    norm_eps: float,
) -> Tensor:
    *lead, M, H = x.shape
    if fn.shape[0] != N or base.shape != (N,):
        raise ValueError(f"fn {tuple(fn.shape)} and base {tuple(base.shape)} for {N} mixes")
    x_rows = rows(x.flatten(-2))
    mixes, squares = mixes_of(x_rows, fn)
    T, splits = len(x_rows), len(mixes)
    y = x.new_empty(*lead, H)
    block_h = min(1024, next_power_of_2(H))
    _pre_kernel[(T, ceil_div(H, block_h))](
        x_rows, mixes, squares, scale.contiguous(), base.contiguous(), y, post, comb, x_rows.stride(0), T, H, splits,
        iters, eps, norm_eps, N=N, M=M, BLOCK_M=next_power_of_2(M),
        BLOCK_S=next_power_of_2(splits), BLOCK_H=block_h,
    )  # fmt: skip
    return y
