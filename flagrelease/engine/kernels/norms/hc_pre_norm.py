"""mHC before a sub-layer, in Triton: from the mixes to the sub-layer's input, and to the streams' weights.

Two kernels, for only the first is waited for before the sub-layer; a program does one token.
Legend: T tokens, M streams (BLOCK_M padded), H hidden size, N mixes a token, S parts of the mixes.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast
from flagrelease.engine.kernels.layout import next_power_of_2, rows
from flagrelease.engine.kernels.norms.hc_split_sinkhorn import gains, store_post_and_comb, stream_rho
from flagrelease.engine.kernels.row_vectors import normed, rounded, store_fp8

FEW = 64  # tokens, whose programs do not fill a chip


@early_kernel
def _pre_norm_kernel(
    x_ptr: tl.tensor,
    mixes_ptr: tl.tensor,
    squares_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    base_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    y_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    x_stride: tl.tensor,
    T: tl.tensor,
    H: tl.tensor,
    S: tl.tensor,
    eps: tl.tensor,
    norm_eps: tl.tensor,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """The streams' weighted sum, normed and rounded."""
    t = tl.program_id(0).to(tl.int64)
    dtype = y_ptr.dtype.element_ty
    s, m, h = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_H)
    weight = tl.load(weight_ptr + h, mask=h < H, other=0.0).to(tl.float32)
    scale, base = tl.load(scale_ptr), tl.load(base_ptr + m, mask=m < M, other=0.0)
    wait_for_results()
    # All loads come before the first sum, whose barrier would part them.
    squares = tl.load(squares_ptr + s * T + t, mask=s < S, other=0.0)
    mixes_inside = (s < S)[:, None] & (m < M)[None, :]
    mixes = tl.load(mixes_ptr + (s[:, None] * T + t) * N + m[None, :], mask=mixes_inside, other=0.0)
    inside = (m < M)[:, None] & (h < H)[None, :]
    x = tl.load(x_ptr + t * x_stride + m[:, None] * H + h[None, :], mask=inside, other=0.0)
    rho = tl.rsqrt(tl.sum(squares, axis=0) / (M * H) + norm_eps)
    pre = tl.sigmoid(tl.sum(mixes, axis=0) * rho * scale + base) + eps
    y = tl.sum(pre[:, None] * x.to(tl.float32), axis=0)
    y = rounded(normed(rounded(y, dtype), weight, H, norm_eps), dtype)
    tl.store(y_ptr + t * H + h, cast(y, dtype), mask=h < H)
    if codes_ptr is not None:
        store_fp8(y, codes_ptr + t * H, scales_ptr + t * (H // 128), H, BLOCK_H)


@early_kernel
def _weights_kernel(
    mixes_ptr: tl.tensor,
    squares_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    base_ptr: tl.tensor,
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
    post_scale, post_base, comb_scale, comb_base = gains(scale_ptr, base_ptr, M, BLOCK_M)
    wait_for_results()
    t = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, BLOCK_S)
    mixes, comb, post = mixes_ptr + t * N, comb_ptr + t * M * M, post_ptr + t * M
    rho = stream_rho(squares_ptr + s * T + t, s < S, count, norm_eps)
    store_post_and_comb(
        mixes, post_scale, post_base, comb_scale, comb_base, comb, post, rho, T * N, S, iters, eps, M, BLOCK_M, BLOCK_S
    )


def hc_pre_norm(
    x: Tensor, mixes: Tensor, squares: Tensor, scale: Tensor, base: Tensor, eps: float, norm_eps: float,
    weight: Tensor, quantise: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """See `reference.hc_pre_norm`."""
    T, M, H = x.shape
    check_mixes(x, mixes, squares, scale, base)
    if weight.shape != (H,) or (quantise and H % 128):
        raise ValueError(f"a norm of {H}, not {tuple(weight.shape)}; groups of 128 columns")
    x_rows, S = rows(x.flatten(-2)), len(mixes)
    y = x.new_empty(T, H)
    codes = torch.empty(T, H, dtype=torch.float8_e4m3fn, device=x.device) if quantise else None
    scales = torch.empty(T, H // 128, dtype=torch.float32, device=x.device) if quantise else None
    _pre_norm_kernel[(T,)](
        x_rows, mixes, squares, scale.contiguous(), base.contiguous(), weight, y, codes, scales, x_rows.stride(0), T, H,
        S, eps, norm_eps, N=M * (M + 2), M=M, BLOCK_M=next_power_of_2(M), BLOCK_S=next_power_of_2(S),
        BLOCK_H=max(128, next_power_of_2(H)), num_warps=8 if H > 2048 else 4,
    )  # fmt: skip
    return y, codes, scales


def hc_weights(
    x: Tensor, mixes: Tensor, squares: Tensor, scale: Tensor, base: Tensor, iters: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor]:
    """See `reference.hc_weights`."""
    T, M, H = x.shape
    check_mixes(x, mixes, squares, scale, base)
    S = len(mixes)
    post = torch.empty(T, M, dtype=torch.float32, device=x.device)
    comb = torch.empty(T, M, M, dtype=torch.float32, device=x.device)
    _weights_kernel[(T,)](
        mixes, squares, scale.contiguous(), base.contiguous(), post, comb, T, M * H, S, iters, eps, norm_eps,
        N=M * (M + 2), M=M, BLOCK_M=next_power_of_2(M), BLOCK_S=next_power_of_2(S), num_warps=1 if T > FEW else 4,
    )  # fmt: skip
    return post, comb


def check_mixes(x: Tensor, mixes: Tensor, squares: Tensor, scale: Tensor, base: Tensor) -> None:
    """Refuse parts of mixes that are not of streams x [T, M, H], as kernels address them.

    Raises:
        ValueError: they are not.
    """
    T, M, _ = x.shape
    N = M * (M + 2)
    if mixes.shape[1:] != (T, N) or squares.shape != mixes.shape[:2] or scale.shape != (3,) or base.shape != (N,):
        raise ValueError(
            f"mixes {tuple(mixes.shape)}, squares {tuple(squares.shape)}, scale {tuple(scale.shape)} and base "
            f"{tuple(base.shape)} of streams {tuple(x.shape)}"
        )
    if not (mixes.is_contiguous() and squares.is_contiguous()):
        raise ValueError("mixes and squares are contiguous")
