"""mHC after a sub-layer, in Triton. Legend: T tokens, M streams (BLOCK_M padded), H hidden size."""
# ruff: noqa: N803  (dimensions of the legend)

import triton
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.interpreter import cast, jit
from flagrelease.engine.kernels.layout import rows


@jit
def _post_kernel(
    o_ptr: tl.tensor,
    x_ptr: tl.tensor,
    post_ptr: tl.tensor,
    comb_ptr: tl.tensor,
    y_ptr: tl.tensor,
    o_stride: tl.tensor,
    x_stride: tl.tensor,
    H: tl.tensor,
    M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """y_k = post_k o + sum_j comb[j, k] x_j."""
    t = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    k = tl.arange(0, BLOCK_M)
    o = tl.load(o_ptr + t * o_stride + h, mask=h < H, other=0.0).to(tl.float32)
    y = tl.load(post_ptr + t * M + k, mask=k < M, other=0.0)[:, None] * o[None, :]
    for j in tl.static_range(M):
        comb = tl.load(comb_ptr + (t * M + j) * M + k, mask=k < M, other=0.0)
        x = tl.load(x_ptr + t * x_stride + j * H + h, mask=h < H, other=0.0).to(tl.float32)
        y += comb[:, None] * x[None, :]
    inside = (k < M)[:, None] & (h < H)[None, :]
    tl.store(y_ptr + (t * M + k[:, None]) * H + h[None, :], cast(y, y_ptr.dtype.element_ty), mask=inside)


def hc_post(o: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """See `reference.hc_post`."""
    *lead, M, H = x.shape
    if o.shape != (*lead, H) or post.shape != (*lead, M) or comb.shape != (*lead, M, M):
        raise ValueError(
            f"o {tuple(o.shape)}, post {tuple(post.shape)} and comb {tuple(comb.shape)} of streams {tuple(x.shape)}"
        )
    o_rows, x_rows = rows(o), rows(x.flatten(-2))
    y = x.new_empty(x.shape)
    block = min(1024, triton.next_power_of_2(H))
    _post_kernel[(len(o_rows), triton.cdiv(H, block))](
        o_rows, x_rows, post.contiguous(), comb.contiguous(), y, o_rows.stride(0), x_rows.stride(0), H,
        M=M, BLOCK_M=triton.next_power_of_2(M), BLOCK_H=block,
    )  # fmt: skip
    return y
