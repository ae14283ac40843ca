"""mHC after a sub-layer, in Triton. Legend: T tokens, S parts of an output, M streams (BLOCK_M padded), H hidden."""
# ruff: noqa: N803  (dimensions of the legend)

import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, rows
from flagrelease.engine.kernels.row_vectors import rounded, sum_parts

FEW = 8  # tokens, whose columns are divided finer: one after the other the loads take longer than the work


@early_kernel
def _post_kernel(
    o_ptr: tl.tensor,
    x_ptr: tl.tensor,
    post_ptr: tl.tensor,
    comb_ptr: tl.tensor,
    y_ptr: tl.tensor,
    o_stride: tl.tensor,
    part_stride: tl.tensor,
    x_stride: tl.tensor,
    S: tl.constexpr,
    H: tl.tensor,
    ROUND: tl.constexpr,
    M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """y_k = post_k o + sum_j comb[j, k] x_j."""
    wait_for_results()
    t = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    k = tl.arange(0, BLOCK_M)
    o = sum_parts(o_ptr + t * o_stride, h, h < H, part_stride, S, S)
    if ROUND:  # parts of a product that has a row's dtype when it is whole
        o = rounded(o, y_ptr.dtype.element_ty)
    y = tl.load(post_ptr + t * M + k, mask=k < M, other=0.0)[:, None] * o[None, :]
    for j in tl.static_range(M):
        comb = tl.load(comb_ptr + (t * M + j) * M + k, mask=k < M, other=0.0)
        x = tl.load(x_ptr + t * x_stride + j * H + h, mask=h < H, other=0.0).to(tl.float32)
        y += comb[:, None] * x[None, :]
    inside = (k < M)[:, None] & (h < H)[None, :]
    tl.store(y_ptr + (t * M + k[:, None]) * H + h[None, :], cast(y, y_ptr.dtype.element_ty), mask=inside)


def hc_post(o: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """See `reference.hc_post`."""
    o_rows = rows(o)
    if o.shape != (*x.shape[:-2], x.shape[-1]):
        raise ValueError(f"o {tuple(o.shape)} for streams {tuple(x.shape)}")
    return _launch(o_rows[None], x, post, comb, rounds=False)


def hc_post_parts(parts: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """See `reference.hc_post_parts`."""
    if parts.shape[1:] != (x.shape[0], x.shape[2]) or parts.stride(-1) != 1:
        raise ValueError(f"parts {tuple(parts.shape)} for streams {tuple(x.shape)}")
    return _launch(parts, x, post, comb, rounds=True)


def _launch(parts: Tensor, x: Tensor, post: Tensor, comb: Tensor, *, rounds: bool) -> Tensor:
    *lead, M, H = x.shape
    if post.shape != (*lead, M) or comb.shape != (*lead, M, M):
        raise ValueError(f"post {tuple(post.shape)} and comb {tuple(comb.shape)} of streams {tuple(x.shape)}")
    x_rows = rows(x.flatten(-2))
    y = x.new_empty(x.shape)
    block = min(1024, next_power_of_2(H))
    if len(x_rows) <= FEW:
        block = min(128, block)
    _post_kernel[(len(x_rows), ceil_div(H, block))](
        parts, x_rows, post.contiguous(), comb.contiguous(), y, parts.stride(1), parts.stride(0), x_rows.stride(0),
        len(parts), H, ROUND=rounds, M=M, BLOCK_M=next_power_of_2(M), BLOCK_H=block,
    )  # fmt: skip
    return y
