"""Manifold-constrained hyper-connections (mHC): M residual streams mixed before and after every sub-layer.

Legend: M streams (4), H hidden size; mixes = 2M + M*M numbers a token (24): pre, post, comb.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flagrelease.engine.kernels.reference.precision import wide


def hc_split_sinkhorn(
    mixes: Tensor, scale: Tensor, base: Tensor, n: int, iters: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the raw mixes into stream weights; comb is made (nearly) doubly stochastic by Sinkhorn's iteration.

    Args:
        mixes: FP32 [.., 2n + n*n]: pre, post, comb in rows.
        scale: FP32 [3], one for each of the three.
        base: FP32 [2n + n*n].
        n: streams.
        iters: column normalisations; it ends on one.
        eps: added to pre, to the row softmax (after its division) and to every divisor.

    Returns:
        pre [.., n] in (eps, 1 + eps), post [.., n] in (0, 2), comb [.., n, n].
    """
    pre = torch.sigmoid(mixes[..., :n] * scale[0] + base[:n]) + eps
    post = 2 * torch.sigmoid(mixes[..., n : 2 * n] * scale[1] + base[n : 2 * n])
    comb = mixes[..., 2 * n :] * scale[2] + base[2 * n :]
    comb = comb.view(*comb.shape[:-1], n, n).softmax(-1) + eps
    comb = comb / (comb.sum(-2, keepdim=True) + eps)
    for _ in range(iters - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + eps)
        comb = comb / (comb.sum(-2, keepdim=True) + eps)
    return pre, post, comb


def hc_pre(
    x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, iters: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The input of a sub-layer, and how its output goes back into the streams.

    Args:
        x: [.., M, H], the streams.
        fn: FP32 [2M + M*M, M*H].
        scale: FP32 [3].
        base: FP32 [2M + M*M].
        iters: see `hc_split_sinkhorn`.
        eps: see `hc_split_sinkhorn`.
        norm_eps: of the RMS over all M*H values.

    Returns:
        y [.., H] = sum_j pre_j x_j in x's dtype; post [.., M] and comb [.., M, M] for `hc_post`.
    """
    pre, post, comb = hc_split_sinkhorn(_mixes(x, fn, norm_eps), scale, base, x.shape[-2], iters, eps)
    return _weighted_sum(pre, x), post, comb


def hc_post(o: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """The new streams: x'_k = post_k o + sum_j comb[j, k] x_j (the sum is over comb's FIRST index).

    Args:
        o: [.., H], the sub-layer's output.
        x: [.., M, H], the streams before it.
        post: [.., M].
        comb: [.., M, M].

    Returns:
        [.., M, H] in x's dtype.
    """
    return (post[..., None] * wide(o)[..., None, :] + comb.mT @ wide(x)).to(x.dtype)


def hc_head(x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, eps: float, norm_eps: float) -> Tensor:
    """The streams summed for the final norm: sum_j (sigmoid(mix_j * scale + base_j) + eps) x_j, in x's dtype.

    Args:
        x: [.., M, H].
        fn: FP32 [M, M*H].
        scale: FP32 [1].
        base: FP32 [M].
        eps: hc_eps.
        norm_eps: of the RMS over all M*H values.
    """
    return _weighted_sum(torch.sigmoid(_mixes(x, fn, norm_eps) * scale + base) + eps, x)


def _mixes(x: Tensor, fn: Tensor, norm_eps: float) -> Tensor:
    flat = wide(x).flatten(-2)
    return flat @ fn.to(flat).mT * torch.rsqrt(flat.square().mean(-1, keepdim=True) + norm_eps)


def _weighted_sum(pre: Tensor, x: Tensor) -> Tensor:
    return (pre[..., None] * wide(x)).sum(-2).to(x.dtype)
