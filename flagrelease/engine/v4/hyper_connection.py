"""mHC: the residual is M streams, mixed into a sub-layer's input and back out of its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.linear import Linear
from flagrelease.engine.schemes import Rounded
from flagrelease.engine.weights import Weights
from flagrelease.model.v4.config import ModelConfig


@dataclass(frozen=True, slots=True)
class HyperConnection:
    """The mixing around one sub-layer. `fn` FP32 [(2 + M) M, M H], `base` FP32 [(2 + M) M], `scale` FP32 [3]."""

    fn: Tensor
    base: Tensor
    scale: Tensor
    norm: Tensor
    iters: int
    eps: float
    norm_eps: float

    @classmethod
    def load(cls, weights: Weights, config: ModelConfig, sub_layer: str) -> HyperConnection:
        """`sub_layer` is attn or ffn."""
        fn, base, scale = (weights.exact(f"hc_{sub_layer}_{part}") for part in ("fn", "base", "scale"))
        norm = weights.plain(f"{sub_layer}_norm.weight")
        return cls(fn, base, scale, norm, config.hc_sinkhorn_iters, config.hc_eps, config.rms_norm_eps)

    def around(self, ops: Operators, streams: Tensor, into: Linear, sub_layer: Callable[[Rounded], Tensor]) -> Tensor:
        """[.., M, H] -> [.., M, H]: collapse, norm, sub-layer, expand and mix.

        The sub-layer gets its input [.., H] also as the linear that it goes `into` takes it.
        """
        flat, lead = streams.flatten(0, -3), streams.shape[:-2]
        mixes, squares = ops.hc_mixes(flat, self.fn)
        mixed = flat, mixes, squares, self.scale, self.base
        post, comb = ops.hc_weights(*mixed, self.iters, self.eps, self.norm_eps)
        made = ops.hc_pre_norm(*mixed, self.eps, self.norm_eps, self.norm, into.scheme.fused)
        plain, codes, scales = (None if part is None else part.view(*lead, -1) for part in made)
        assert plain is not None
        out = sub_layer(into.take(ops, plain, codes, scales))
        return ops.hc_post(out, streams, post.view(*lead, -1), comb.view(*lead, *comb.shape[1:]))


@dataclass(frozen=True, slots=True)
class HyperHead:
    """The end of the streams: one weighted sum, then the final norm."""

    fn: Tensor
    base: Tensor
    scale: Tensor
    norm: Tensor
    eps: float
    norm_eps: float

    @classmethod
    def load(cls, weights: Weights, config: ModelConfig) -> HyperHead:
        """The model's own, or an MTP stage's."""
        fn, base, scale = (weights.exact(f"hc_head_{part}") for part in ("fn", "base", "scale"))
        return cls(fn, base, scale, weights.plain("norm.weight"), config.hc_eps, config.rms_norm_eps)

    def collapse(self, ops: Operators, streams: Tensor) -> Tensor:
        """[.., M, H] -> [.., H]."""
        return self.normed(ops, self.sum(ops, streams))

    def sum(self, ops: Operators, streams: Tensor) -> Tensor:
        """The streams as one, [.., M, H] -> [.., H], without the norm."""
        return ops.hc_head(streams, self.fn, self.scale, self.base, self.eps, self.norm_eps)

    def normed(self, ops: Operators, x: Tensor) -> Tensor:
        """The final norm of [.., H]."""
        return ops.rms_norm(x, self.norm, self.norm_eps)
