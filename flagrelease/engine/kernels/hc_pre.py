"""mHC before a sub-layer and before the head, in Triton.

Legend: T tokens, M streams (BLOCK_M padded), H hidden size, K = M*H, N mixes a token, S splits of K. The mixes are a
thin product (24 outputs of 16,384 inputs) whose FP32 matrix every block of tokens reads, so K is split over programs,
and the kernel that uses the mixes adds the parts: two launches at any batch.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.hc_split_sinkhorn import partial_sum, store_post_and_comb
from flagrelease.engine.kernels.interpreter import cast, dot, jit
from flagrelease.engine.kernels.layout import rows
from flagrelease.engine.kernels.row_vectors import normed, rounded, store_fp8

TOKENS = 16  # of a program
STEP = 128  # columns
MOST_SPLITS = 32
PROGRAMS = 256  # enough to fill a chip


@jit
def _exact_dot(x: tl.tensor, fn: tl.tensor, acc: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """acc + x fn to FP32's precision: for BF16 x on the matrix unit, with fn as a sum of three BF16 numbers."""
    if dtype == tl.bfloat16:
        x = cast(x, tl.bfloat16)
        high = cast(fn, tl.bfloat16)
        rest = fn - high.to(tl.float32)
        middle = cast(rest, tl.bfloat16)
        low = cast(rest - middle.to(tl.float32), tl.bfloat16)
        return dot(x, low, dot(x, middle, dot(x, high, acc)))
    else:  # noqa: RET505 - Triton compiles what follows a return
        return dot(x, fn, acc)


@early_kernel
def _mixes_kernel(
    x_ptr: tl.tensor,
    fn_ptr: tl.tensor,
    mixes_ptr: tl.tensor,
    squares_ptr: tl.tensor,
    x_stride: tl.tensor,
    T: tl.tensor,
    K: tl.tensor,
    N: tl.tensor,
    per_split: tl.tensor,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Part s of fn . x and of the sum of squares: mixes [S, T, N], squares [S, T]."""
    wait_for_results()
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    s = tl.program_id(1)
    n = tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_T,), tl.float32)
    for start in range(s * per_split, tl.minimum((s + 1) * per_split, K), BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_inside = (t < T)[:, None] & (k < K)[None, :]
        x = tl.load(x_ptr + t[:, None] * x_stride + k[None, :], mask=x_inside, other=0.0).to(tl.float32)
        fn = tl.load(fn_ptr + n[None, :] * K + k[:, None], mask=(n < N)[None, :] & (k < K)[:, None], other=0.0)
        acc = _exact_dot(x, fn, acc, x_ptr.dtype.element_ty)
        squares += tl.sum(x * x, axis=1)
    row = s * T + t
    tl.store(mixes_ptr + row[:, None] * N + n[None, :], acc, mask=(t < T)[:, None] & (n < N)[None, :])
    tl.store(squares_ptr + row, squares, mask=t < T)


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
    rho = _rho(squares_ptr + s * T + t, s < S, M * H, norm_eps)
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
            store_post_and_comb(mixes, scale_ptr, base_ptr, comb, post, rho, T * N, S, iters, eps, M, BLOCK_M, BLOCK_S)


@jit
def _rho(squares: tl.tensor, inside: tl.tensor, count: tl.tensor, eps: tl.tensor) -> tl.tensor:
    """One over the root mean square of `count` values, from parts of their sum of squares."""
    return tl.rsqrt(tl.sum(tl.load(squares, mask=inside, other=0.0), axis=0) / count + eps)


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
    """Program (t, 0): the streams' weighted sum, normed and rounded. Program (t, 1), beside it: post and comb."""
    wait_for_results()
    t = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, BLOCK_S)
    mixes = mixes_ptr + t * N
    if tl.program_id(1) == 0:
        dtype = y_ptr.dtype.element_ty
        m, h = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_H)
        # The streams are loaded first: the mixes' way to `pre` is long.
        inside = (m < M)[:, None] & (h < H)[None, :]
        x = tl.load(x_ptr + t * x_stride + m[:, None] * H + h[None, :], mask=inside, other=0.0)
        weight = tl.load(weight_ptr + h, mask=h < H, other=0.0).to(tl.float32)
        rho = _rho(squares_ptr + s * T + t, s < S, M * H, norm_eps)
        pre = partial_sum(mixes + m, m < M, T * N, S, BLOCK_S) * rho
        pre = tl.sigmoid(pre * tl.load(scale_ptr) + tl.load(base_ptr + m, mask=m < M, other=0.0)) + eps
        y = tl.sum(pre[:, None] * x.to(tl.float32), axis=0)
        y = rounded(normed(rounded(y, dtype), weight, H, norm_eps), dtype)
        tl.store(y_ptr + t * H + h, cast(y, dtype), mask=h < H)
        if codes_ptr is not None:
            store_fp8(y, codes_ptr + t * H, scales_ptr + t * (H // 128), H, BLOCK_H)
    else:
        rho = _rho(squares_ptr + s * T + t, s < S, M * H, norm_eps)
        comb, post = comb_ptr + t * M * M, post_ptr + t * M
        store_post_and_comb(mixes, scale_ptr, base_ptr, comb, post, rho, T * N, S, iters, eps, M, BLOCK_M, BLOCK_S)


def hc_pre_norm(
    x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, iters: int, eps: float, norm_eps: float, weight: Tensor,
    quantise: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """See `reference.hc_pre_norm`."""
    *lead, M, H = x.shape
    if scale.shape != (3,) or weight.shape != (H,) or (quantise and H % 128):
        raise ValueError(f"3 scales, not {tuple(scale.shape)}; a norm of {H}, not {tuple(weight.shape)}; groups of 128")
    x_rows, mixes, squares = _mixes(x, fn, base, M * (M + 2))
    T, S = len(x_rows), len(mixes)
    post = torch.empty(*lead, M, dtype=torch.float32, device=x.device)
    comb = torch.empty(*lead, M, M, dtype=torch.float32, device=x.device)
    y = x.new_empty(*lead, H)
    codes = torch.empty(*lead, H, dtype=torch.float8_e4m3fn, device=x.device) if quantise else None
    scales = torch.empty(*lead, H // 128, dtype=torch.float32, device=x.device) if quantise else None
    _pre_norm_kernel[(T, 2)](
        x_rows, mixes, squares, scale.contiguous(), base.contiguous(), weight, y, codes, scales, post, comb,
        x_rows.stride(0), T, H, S, iters, eps, norm_eps, N=M * (M + 2), M=M, BLOCK_M=triton.next_power_of_2(M),
        BLOCK_S=triton.next_power_of_2(S), BLOCK_H=max(128, triton.next_power_of_2(H)), num_warps=8,
    )  # fmt: skip
    return y, codes, scales, post, comb


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
    x_rows, mixes, squares = _mixes(x, fn, base, N)
    T, splits = len(x_rows), len(mixes)
    y = x.new_empty(*lead, H)
    block_h = min(1024, triton.next_power_of_2(H))
    _pre_kernel[(T, triton.cdiv(H, block_h))](
        x_rows, mixes, squares, scale.contiguous(), base.contiguous(), y, post, comb, x_rows.stride(0), T, H, splits,
        iters, eps, norm_eps, N=N, M=M, BLOCK_M=triton.next_power_of_2(M),
        BLOCK_S=triton.next_power_of_2(splits), BLOCK_H=block_h,
    )  # fmt: skip
    return y


def _mixes(x: Tensor, fn: Tensor, base: Tensor, N: int) -> tuple[Tensor, Tensor, Tensor]:
    """The streams as rows [T, M*H], parts of fn . x [S, T, N] and of the sums of squares [S, T]."""
    M, H = x.shape[-2:]
    if fn.shape != (N, M * H) or fn.dtype != torch.float32 or base.shape != (N,):
        raise ValueError(f"fn {fn.dtype} {tuple(fn.shape)}, base {tuple(base.shape)}: FP32 [{N}, {M * H}] is needed")
    x_rows = rows(x.flatten(-2))
    T = len(x_rows)
    blocks = triton.cdiv(T, TOKENS)
    most = MOST_SPLITS if T > TOKENS else 4 * MOST_SPLITS  # parts as short as can be, where nothing else hides latency
    splits = max(1, min(most, PROGRAMS // max(blocks, 1), triton.cdiv(M * H, STEP)))
    per_split = triton.cdiv(triton.cdiv(M * H, splits), STEP) * STEP
    mixes = torch.empty(splits, T, N, dtype=torch.float32, device=x.device)
    squares = torch.empty(splits, T, dtype=torch.float32, device=x.device)
    _mixes_kernel[(blocks, splits)](
        x_rows, fn.contiguous(), mixes, squares, x_rows.stride(0), T, M * H, N, per_split,
        BLOCK_T=TOKENS, BLOCK_N=max(16, triton.next_power_of_2(N)), BLOCK_K=STEP,
    )  # fmt: skip
    return x_rows, mixes, squares
