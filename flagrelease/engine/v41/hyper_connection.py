"""Delayed mHC: the streams' weights for a sub-layer's input were made in front of the sub-layer before.

Mixes are taken of the streams in front of each sub-layer, as in V4. Its `post` and `comb` serve its output; its `pre`
waits for the next sub-layer's input, and the last one for the end of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.weights import Weights
from flagrelease.model.v41.config import V41Config


@dataclass(frozen=True, slots=True)
class DelayedConnection:
    """The mixing around one sub-layer. `fn` FP32 [(2 + M) M, M H], `base` FP32 [(2 + M) M], `scale` FP32 [3]."""

    fn: Tensor
    base: Tensor
    scale: Tensor
    norm: Tensor
    iters: int
    eps: float
    norm_eps: float

    @classmethod
    def load(cls, weights: Weights, config: V41Config, sub_layer: str) -> DelayedConnection:
        """`sub_layer` is attn or ffn."""
        fn, base, scale = (weights.exact(f"hc_{sub_layer}_{part}") for part in ("fn", "base", "scale"))
        norm = weights.plain(f"{sub_layer}_norm.weight")
        return cls(fn, base, scale, norm, config.hc_sinkhorn_iters, config.hc_eps, config.rms_norm_eps)

    def mix(self, ops: Operators, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Streams [.., M, H] -> pre [.., M] for the sub-layer after this one, post [.., M] and comb [.., M, M]."""
        flat, lead = streams.flatten(0, -3), streams.shape[:-2]
        mixes, squares = ops.hc_mixes(flat, self.fn)
        made = ops.hc_delayed(flat, mixes, squares, self.scale, self.base, self.iters, self.eps, self.norm_eps)
        pre, post, comb = (part.view(*lead, *part.shape[1:]) for part in made)
        return pre, post, comb

    def input(self, ops: Operators, streams: Tensor, pre: Tensor) -> Tensor:
        """The sub-layer's input [.., H], normed, of the streams by the weights that waited for it."""
        return ops.rms_norm(ops.hc_collapse(streams, pre), self.norm, self.norm_eps)
