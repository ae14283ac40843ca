"""Operators on single rows: norm, RoPE, Hadamard, SwiGLU, addition, embedding.

Mathematics: DeepSeek's inference/model.py and kernel.py. FP32 inside, one rounding to the input's dtype at the end.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from flagrelease.engine.kernels.reference.precision import wide
from flagrelease.engine.kernels.reference.quantisation import act_quant


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, out: Tensor | None = None, stepwise: bool = False
) -> Tensor:  # fmt: skip
    """x * rsqrt(mean(x^2) + eps) * weight over the last dimension, in x's dtype.

    Args:
        x: [.., d].
        weight: [d] of any float dtype, or None for the unweighted norm of the query heads.
        eps: added to the mean square.
        out: where to write, x's shape and dtype; may be `x` itself.
        stepwise: round the squares, their mean (added up in FP32), its sum with eps, the reciprocal root and the
            product to x's dtype, each on its own, as DeepSeek's model.py does with the query heads. Without a weight.
    """
    if stepwise:
        if weight is not None:
            raise ValueError("only the norm without a weight is rounded step by step")
        # As a GPU rounds `x * torch.rsqrt(mean + eps)`. In BF16 torch's CPU also rounds eps, and the reciprocal root of
        # the last few elements of a tensor twice.
        shifted = (wide(x.square().mean(-1, keepdim=True)) + eps).to(x.dtype)
        return _deliver(x * torch.rsqrt(wide(shifted)).to(x.dtype), out)
    y = wide(x)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * wide(weight)
    return _deliver(y.to(x.dtype), out)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False, out: Tensor | None = None) -> Tensor:
    """Rotate the pairs (x[2i], x[2i+1]) by their position's angle: interleaved, not split in halves.

    Args:
        x: [.., r], already narrowed to the rotated dimensions (the last 64 of a head); r even.
        cos: FP32, broadcast against [.., r/2]; for x [b, s, h, r] that is [s, 1, r/2] or [b, s, 1, r/2].
        sin: like cos.
        inverse: rotate back (the complex conjugate), as the attention output needs.
        out: where to write, x's shape and dtype; may be `x` itself.
    """
    even, odd = wide(x[..., 0::2]), wide(x[..., 1::2])
    if inverse:
        sin = -sin
    y = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
    return _deliver(y.to(x.dtype), out)


def hadamard(x: Tensor) -> Tensor:
    """(x H_d) * d^(-1/2) over the last dimension, H_d Sylvester's matrix, d a power of two; x's dtype."""
    d = x.shape[-1]
    if d & (d - 1):
        raise ValueError(f"the Hadamard transform needs a power of two, not {d} columns")
    y = wide(x)
    product = y @ _sylvester(d).to(y)
    return (product * math.pow(d, -0.5)).to(x.dtype)


@lru_cache
def _sylvester(d: int) -> Tensor:
    """H_1 = [1], H_2n = [[H_n, H_n], [H_n, -H_n]]."""
    h = torch.ones(1, 1, dtype=torch.float32)
    while h.shape[0] < d:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return h


def swiglu(gate: Tensor, up: Tensor, limit: float, weight: Tensor | None = None) -> Tensor:
    """silu(min(gate, limit)) * clamp(up, -limit, limit) [* weight], in gate's dtype.

    The gate is clamped above only. Routed and shared experts use the same limit: the missing clamp of the shared expert
    in upstream's first release caused spurious tokens.

    Args:
        gate: [.., n], w1 x.
        up: [.., n], w3 x.
        limit: swiglu_limit, 10 in V4.
        weight: [..], the routing weight in FP32, or None (shared expert).
    """
    g = wide(gate).clamp(max=limit)
    y = torch.nn.functional.silu(g) * wide(up).clamp(-limit, limit)
    if weight is not None:
        y = y * wide(weight)[..., None]
    return y.to(gate.dtype)


def swiglu_quant(gate: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """`act_quant` of `swiglu`, whose result is rounded to gate's dtype between: codes [.., n], scales [.., n/128]."""
    return act_quant(swiglu(gate, up, limit))


def add(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a + b (broadcast), summed in FP32, rounded once to `dtype`: routed + shared expert, score + ape."""
    return (wide(a) + wide(b)).to(dtype)


def embedding(ids: Tensor, table: Tensor, vocab_start: int = 0) -> Tensor:
    """Rows of a vocabulary shard: table[id - vocab_start], and zeros for ids of other ranks (an all-reduce adds them).

    Args:
        ids: integers [..], global token ids.
        table: [V_local, H].
        vocab_start: global id of the first row.
    """
    local = ids.long() - vocab_start
    owned = (local >= 0) & (local < table.shape[0])
    return table[local.where(owned, 0)].masked_fill(~owned[..., None], 0)


def _deliver(y: Tensor, out: Tensor | None) -> Tensor:
    return y if out is None else out.copy_(y)
