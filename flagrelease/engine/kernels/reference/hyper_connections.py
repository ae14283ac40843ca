"""Manifold-constrained hyper-connections (mHC): M residual streams mixed before and after every sub-layer.

Legend: M streams (4), H hidden size; mixes = 2M + M*M numbers a token (24): pre, post, comb.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flagrelease.engine.kernels.reference.parts import Quantised, quantised, whole
from flagrelease.engine.kernels.reference.precision import wide
from flagrelease.engine.kernels.reference.rows import rms_norm


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


def hc_mixes(x: Tensor, fn: Tensor) -> tuple[Tensor, Tensor]:
    """What `hc_pre` makes the streams' weights of, in parts.

    Args:
        x: [B, M, H], the streams.
        fn: FP32 [2M + M*M, M*H].

    Returns:
        FP32 parts of fn . x [S, B, 2M + M*M], and of the sum of squares of a row's streams [S, B].
    """
    flat = wide(x).flatten(1)
    return (flat @ fn.to(flat).mT)[None], flat.square().sum(-1)[None]


def hc_pre_norm(
    x: Tensor, mixes: Tensor, squares: Tensor, scale: Tensor, base: Tensor, eps: float, norm_eps: float,
    weight: Tensor, quantise: bool,
) -> Quantised:  # fmt: skip
    """The sub-layer's input of `hc_pre`, by the mixes of x; then RMSNorm, then (`quantise`) `act_quant`."""
    n = x.shape[1]
    pre = torch.sigmoid(_whole_mixes(x, mixes, squares, norm_eps)[:, :n] * scale[0] + base[:n]) + eps
    y = (pre[..., None] * wide(x)).sum(1).to(x.dtype)
    return quantised(rms_norm(y, weight, norm_eps), quantise)


def hc_weights(
    x: Tensor, mixes: Tensor, squares: Tensor, scale: Tensor, base: Tensor, iters: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor]:
    """`hc_pre`'s post [B, M] and comb [B, M, M], by the mixes of x."""
    mixes = _whole_mixes(x, mixes, squares, norm_eps)
    return hc_split_sinkhorn(mixes, scale, base, x.shape[1], iters, eps)[1:]


def hc_post_parts(parts: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """`hc_post` of an output in parts [S, B, H] (any float dtype), added in FP32 and rounded to x's dtype."""
    return hc_post(whole(parts, x.dtype), x, post, comb)


def hc_post_mixes(
    parts: Tensor, x: Tensor, post: Tensor, comb: Tensor, fn: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`hc_post_parts`, and of the new streams `hc_mixes` with the next sub-layer's fn."""
    y = hc_post_parts(parts, x, post, comb)
    return y, *hc_mixes(y, fn)


def _whole_mixes(x: Tensor, mixes: Tensor, squares: Tensor, eps: float) -> Tensor:
    count = x.shape[1] * x.shape[2]
    return mixes.sum(0) * torch.rsqrt(squares.sum(0) / count + eps)[:, None]
