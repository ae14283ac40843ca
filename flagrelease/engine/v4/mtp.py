"""The multi-token-prediction stage of the preview releases: one more block, which drafts the token after the next.

DSpark releases (0731) store other stages: see `dspark`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.linear import Linear, project
from flagrelease.engine.numerics import Numerics
from flagrelease.engine.parallel import Groups
from flagrelease.engine.v4.block import Block
from flagrelease.engine.v4.cache import LayerCache
from flagrelease.engine.v4.hyper_connection import HyperHead
from flagrelease.engine.v4.rope import RopeTable
from flagrelease.engine.v4.step import Step
from flagrelease.engine.weights import Weights
from flagrelease.model.v4.config import ModelConfig


@dataclass(frozen=True, slots=True)
class MtpStage:
    """Embedding and output head are the main model's."""

    e_proj: Linear
    h_proj: Linear
    enorm: Tensor
    hnorm: Tensor
    block: Block
    final: HyperHead
    eps: float

    @classmethod
    def load(cls, weights: Weights, config: ModelConfig, numerics: Numerics, groups: Groups) -> MtpStage:
        """The stage under `weights`."""
        return cls(
            weights.linear("e_proj"),
            weights.linear("h_proj"),
            weights.plain("enorm.weight"),
            weights.plain("hnorm.weight"),
            Block.load(weights, config, config.compress_ratios[-1], numerics, groups, hashed=False),
            HyperHead.load(weights, config),
            config.rms_norm_eps,
        )

    def arranged(self, ops: Operators) -> MtpStage:
        """With weights as the operators' kernels read them."""
        return replace(self, block=self.block.arranged(ops))

    def forward(
        self, ops: Operators, streams: Tensor, embedded: Tensor, step: Step, cache: LayerCache, rope: RopeTable,
        groups: Groups,
    ) -> Tensor:  # fmt: skip
        """Streams of the main model [B, S, M, H] and the following tokens' embeddings [B, S, H] -> hidden [B, S, H]."""
        mixed = self.mix(ops, streams, embedded)
        return self.final.collapse(ops, self.block.forward(ops, mixed, step, cache, rope, groups))

    def mix(self, ops: Operators, streams: Tensor, embedded: Tensor) -> Tensor:
        """What the block reads: streams [.., M, H] and the following tokens' embeddings [.., H] -> [.., M, H]."""
        (e,) = project(ops, ops.rms_norm(embedded, self.enorm, self.eps), self.e_proj)
        (h,) = project(ops, ops.rms_norm(streams, self.hnorm, self.eps), self.h_proj)
        return ops.add(e[..., None, :], h, streams.dtype)
