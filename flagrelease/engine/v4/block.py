"""One layer: attention and feed-forward, each inside its hyper-connection."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.linear import Linear
from flagrelease.engine.numerics import Numerics
from flagrelease.engine.parallel import Groups
from flagrelease.engine.schemes import Rounded
from flagrelease.engine.v4.attention import Attention
from flagrelease.engine.v4.cache import LayerCache
from flagrelease.engine.v4.hyper_connection import HyperConnection
from flagrelease.engine.v4.moe import MoE
from flagrelease.engine.v4.rope import RopeTable
from flagrelease.engine.v4.step import Step
from flagrelease.engine.weights import Weights
from flagrelease.model.v4.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Block:
    """A decoder layer, or the inner block of an MTP stage."""

    attn_hc: HyperConnection
    attn: Attention
    ffn_hc: HyperConnection
    ffn: MoE

    @classmethod
    def load(
        cls, weights: Weights, config: ModelConfig, ratio: int, numerics: Numerics, groups: Groups, *, hashed: bool
    ) -> Block:
        """The layer under `weights`, with this rank's part of what is cut."""
        count = config.n_routed_experts // groups.mp
        owned = range(groups.rank * count, (groups.rank + 1) * count)
        return cls(
            HyperConnection.load(weights, config, "attn"),
            Attention.load(weights.at("attn"), config, ratio, numerics, groups),
            HyperConnection.load(weights, config, "ffn"),
            MoE.load(weights.at("ffn"), config, hashed, owned),
        )

    def arranged(self, ops: Operators) -> Block:
        """With weights as the operators' kernels read them."""
        return replace(self, ffn=self.ffn.arranged(ops))

    def forward(
        self, ops: Operators, streams: Tensor, step: Step, cache: LayerCache, rope: RopeTable, groups: Groups
    ) -> Tensor:
        """Streams [B, S, M, H] -> [B, S, M, H]; of a spread step this rank's, [T / mp, M, H] -> [T / mp, M, H]."""
        shape = *step.tokens.shape, streams.shape[-1]

        def attend(x: Rounded) -> Tensor:
            x = _together(ops, x, self.attn.latents, groups, shape)
            return self.attn.forward(ops, x, step, cache, rope, groups)

        def feed_forward(x: Rounded) -> Tensor:
            x = _together(ops, x, self.ffn.w13, groups, shape)
            return self.ffn.forward(ops, x, step.tokens, step.real, groups)

        streams = self.attn_hc.around(ops, streams, self.attn.latents, attend)
        return self.ffn_hc.around(ops, streams, self.ffn.w13, feed_forward)


def _together(ops: Operators, x: Rounded, into: Linear, groups: Groups, shape: tuple[int, ...]) -> Rounded:
    """Of a spread step all ranks' tokens, rounded for the linear that they go `into`; else x, which is."""
    return into.round(ops, groups.together(x.plain, shape)) if groups.is_spread else x
