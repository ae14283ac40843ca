"""mHC after a sub-layer and the mixes before the next one, in one launch, in Triton.

A program makes some columns of one new stream, and of them a part of the mixes.
Legend: T tokens, S parts of an output, M streams, H hidden size, N mixes a token.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, rows
from flagrelease.engine.kernels.norms.hc_mixes import exact_dot
from flagrelease.engine.kernels.row_vectors import rounded, sum_parts

TOKENS = 16  # of a program, which multiplies them on the matrix unit
FEW = 4  # up to here a program has one token, and needs no matrix unit
COLUMNS = 64


@early_kernel
def _post_mixes_kernel(
    o_ptr: tl.tensor,
    x_ptr: tl.tensor,
    post_ptr: tl.tensor,
    comb_ptr: tl.tensor,
    fn_ptr: tl.tensor,
    y_ptr: tl.tensor,
    mixes_ptr: tl.tensor,
    squares_ptr: tl.tensor,
    o_stride: tl.tensor,
    part_stride: tl.tensor,
    x_stride: tl.tensor,
    S: tl.constexpr,
    T: tl.tensor,
    H: tl.tensor,
    N: tl.tensor,
    M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """y_k = post_k o + sum_j comb[j, k] x_j in some columns, and of them a part of fn . y and of the sum of squares."""
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    part, k = tl.program_id(1), tl.program_id(1) % M
    h, n = part // M * BLOCK_H + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_N)
    dtype = y_ptr.dtype.element_ty
    # fn is a weight, nobody's result.
    fn_inside = (n < N)[None, :] & (h < H)[:, None]
    fn = tl.load(fn_ptr + n[None, :] * (M * H) + (k * H + h)[:, None], mask=fn_inside, other=0.0)
    wait_for_results()
    inside = (t < T)[:, None] & (h < H)[None, :]
    at_once: tl.constexpr = S if BLOCK_T == 1 else 7  # more tokens have no registers for more
    o = sum_parts(o_ptr, t[:, None] * o_stride + h[None, :], inside, part_stride, S, at_once)
    y = tl.load(post_ptr + t * M + k, mask=t < T, other=0.0)[:, None] * rounded(o, dtype)
    for j in tl.static_range(M):
        comb = tl.load(comb_ptr + (t * M + j) * M + k, mask=t < T, other=0.0)
        x = tl.load(x_ptr + t[:, None] * x_stride + j * H + h[None, :], mask=inside, other=0.0).to(tl.float32)
        y += comb[:, None] * x
    y = rounded(y, dtype)
    tl.store(y_ptr + (t[:, None] * M + k) * H + h[None, :], cast(y, dtype), mask=inside)
    if BLOCK_T == 1:
        acc = tl.sum(tl.trans(y) * fn, axis=0)[None, :]
    else:
        acc = exact_dot(y, fn, tl.zeros((BLOCK_T, BLOCK_N), tl.float32), dtype)
    row = part * T + t
    tl.store(mixes_ptr + row[:, None] * N + n[None, :], acc, mask=(t < T)[:, None] & (n < N)[None, :])
    tl.store(squares_ptr + row, tl.sum(y * y, axis=1), mask=t < T)


def hc_post_mixes(
    parts: Tensor, x: Tensor, post: Tensor, comb: Tensor, fn: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See `reference.hc_post_mixes`."""
    T, M, H = x.shape
    N = len(fn)
    if parts.shape[1:] != (T, H) or parts.stride(-1) != 1 or fn.shape != (N, M * H) or fn.dtype != torch.float32:
        raise ValueError(f"parts {tuple(parts.shape)} and fn {fn.dtype} {tuple(fn.shape)} for streams {tuple(x.shape)}")
    if post.shape != (T, M) or comb.shape != (T, M, M):
        raise ValueError(f"post {tuple(post.shape)} and comb {tuple(comb.shape)} of streams {tuple(x.shape)}")
    x_rows = rows(x.flatten(-2))
    splits = M * ceil_div(H, COLUMNS)
    y = x.new_empty(T, M, H)
    mixes = torch.empty(splits, T, N, dtype=torch.float32, device=x.device)
    squares = torch.empty(splits, T, dtype=torch.float32, device=x.device)
    tokens = 1 if T <= FEW else TOKENS
    _post_mixes_kernel[(ceil_div(T, tokens), splits)](
        parts, x_rows, post.contiguous(), comb.contiguous(), fn.contiguous(), y, mixes, squares, parts.stride(1),
        parts.stride(0), x_rows.stride(0), len(parts), T, H, N, M=M, BLOCK_T=tokens,
        BLOCK_N=max(16, next_power_of_2(N)), BLOCK_H=COLUMNS,
    )  # fmt: skip
    return y, mixes, squares
