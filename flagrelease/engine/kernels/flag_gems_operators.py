"""The provider `flag_gems`: FlagGems' kernels (5.0.2) where it has the operator with V4's semantics, else ours.

Importing this module imports flag_gems, which wants a device. What its kernels need beyond their signatures (by
reading):

- act_quant_triton takes the maximum and its product with 1/448 in the input's type: BF16 would round the scale;
- hadamard_transform adds in the input's type;
- sparse_attn_triton needs 16 to 64 heads (shared memory, at d = 512), a power of two, and gives NaN unless one of the
  first 64 positions is valid;
- hc_split_sinkhorn has eps = 1e-6 in the kernel;
- fp8_matmul writes BF16 and needs a multiple of 128 outputs (the last block's rows wrap around).
"""

from __future__ import annotations

import math

import torch
from flag_gems.fused.mhc.hc_split_sinkhorn import hc_split_sinkhorn as gems_hc_split_sinkhorn
from flag_gems.fused.mhc.mhc_post import mhc_post as gems_mhc_post
from flag_gems.fused.sparse_attention import sparse_attn_triton as gems_sparse_attention
from flag_gems.ops.act_quant import act_quant_triton as gems_act_quant
from flag_gems.ops.fp8_matmul import fp8_matmul as gems_fp8_matmul
from flag_gems.ops.hadamard_transform import hadamard_transform as gems_hadamard
from torch import Tensor

from flagrelease.engine.kernels.attention import sparse_attention as triton_sparse_attention
from flagrelease.engine.kernels.linear import linear as triton_linear
from flagrelease.engine.kernels.norms import hc_post as triton_hc_post
from flagrelease.engine.kernels.norms import hc_split_sinkhorn as triton_hc_split_sinkhorn
from flagrelease.engine.kernels.triton_operators import TritonOperators
from flagrelease.engine.kernels.weights import FP8_BLOCK, check_fp8_weight


def act_quant(x: Tensor, block: int = FP8_BLOCK) -> tuple[Tensor, Tensor]:
    """See `reference.act_quant`."""
    codes, scale = gems_act_quant(x.float().contiguous(), block, "ue8m0")
    return codes, scale


def hadamard(x: Tensor) -> Tensor:
    """See `reference.hadamard`."""
    y: Tensor = gems_hadamard(x.float(), math.pow(x.shape[-1], -0.5))
    return y.to(x.dtype)


def sparse_attention(
    q: Tensor, kv: Tensor, sink: Tensor, idx: Tensor, scale: float, rows: Tensor | None = None
) -> Tensor:
    """See `reference.sparse_attention`."""
    heads, dim = q.shape[2:]
    powers_of_two = heads & (heads - 1) == dim & (dim - 1) == 0
    if not 16 <= heads <= 64 or not powers_of_two or not q.dtype == kv.dtype == torch.bfloat16:
        return triton_sparse_attention.sparse_attention(q, kv, sink, idx, scale, rows)
    valid_first = idx.sort(dim=-1, descending=True).values
    o: Tensor = gems_sparse_attention(q, kv if rows is None else kv[rows], sink, valid_first, scale)
    return o.masked_fill((valid_first[..., 0] < 0)[..., None, None], 0)


def hc_split_sinkhorn(
    mixes: Tensor, scale: Tensor, base: Tensor, n: int, iters: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.hc_split_sinkhorn`."""
    if eps != 1e-6:
        return triton_hc_split_sinkhorn.hc_split_sinkhorn(mixes, scale, base, n, iters, eps)
    pre, post, comb = gems_hc_split_sinkhorn(mixes, scale, base, n, iters, eps)
    return pre, post, comb


def hc_post(o: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """See `reference.hc_post`."""
    if not o.dtype == x.dtype == torch.bfloat16:
        return triton_hc_post.hc_post(o, x, post, comb)
    streams, hidden = x.shape[-2:]
    y: Tensor = gems_mhc_post(
        o.reshape(-1, hidden),
        x.reshape(-1, streams, hidden),
        post.reshape(-1, streams, 1),
        comb.reshape(-1, streams, streams),
    )
    return y.view(x.shape)


def fp8_linear(
    xq: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor, out_dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """See `reference.fp8_linear`."""
    if xs is None or out_dtype != torch.bfloat16 or w.shape[0] % FP8_BLOCK or out is not None:
        return triton_linear.fp8_linear(xq, xs, w, ws, out_dtype, out)
    check_fp8_weight(w, ws)
    triton_linear.check_activation(xq, xs, w.shape[1])
    y: Tensor = gems_fp8_matmul(xq.contiguous(), xs.contiguous(), w.contiguous(), ws.float())
    return y


class FlagGemsOperators(TritonOperators):
    """FlagGems where it has the operator."""

    name = "flag_gems"

    act_quant = staticmethod(act_quant)
    fp8_linear = staticmethod(fp8_linear)
    hadamard = staticmethod(hadamard)
    hc_post = staticmethod(hc_post)
    hc_split_sinkhorn = staticmethod(hc_split_sinkhorn)
    sparse_attention = staticmethod(sparse_attention)
