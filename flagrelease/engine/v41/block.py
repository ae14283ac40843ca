"""One layer of DeepSeek-V4.1: Engram in some of them, then attention and feed-forward inside delayed mHC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.numerics import Numerics
from flagrelease.engine.parallel import Groups
from flagrelease.engine.v4.rope import RopeTable
from flagrelease.engine.v41.attention import SharedAttention
from flagrelease.engine.v41.cache import LayerKeys
from flagrelease.engine.v41.engram import Engram
from flagrelease.engine.v41.hyper_connection import DelayedConnection
from flagrelease.engine.v41.indexer import Handed
from flagrelease.engine.v41.moe import ModalMoE
from flagrelease.engine.v41.step import SharedStep
from flagrelease.engine.weights import Weights
from flagrelease.model.v41.config import V41Config


@dataclass(frozen=True, slots=True)
class SharedBlock:
    """A decoder layer, whose number is `layer`."""

    layer: int
    engram: Engram | None
    attn_hc: DelayedConnection
    attn: SharedAttention
    ffn_hc: DelayedConnection
    ffn: ModalMoE

    @classmethod
    def load(
        cls, weights: Weights, config: V41Config, layer: int, engram: Engram | None, numerics: Numerics, groups: Groups
    ) -> SharedBlock:
        """The layer under `weights`, with this rank's part of what is cut."""
        count = config.n_routed_experts // groups.mp
        owned = range(groups.rank * count, (groups.rank + 1) * count)
        return cls(
            layer,
            engram,
            DelayedConnection.load(weights, config, "attn"),
            SharedAttention.load(weights.at("attn"), config, layer, numerics, groups),
            DelayedConnection.load(weights, config, "ffn"),
            ModalMoE.load(weights.at("ffn"), config, owned),
        )

    def forward(
        self, ops: Operators, streams: Tensor, step: SharedStep, layers: Sequence[LayerKeys], rope: RopeTable,
        handed: Handed, groups: Groups,
    ) -> Tensor:  # fmt: skip
        """Streams [B, S, M, H] -> [B, S, M, H]. `layers`: the buffers of all layers, which this one extends."""
        own, source = layers[self.layer], self.attn.source
        if self.engram is not None:
            assert own.tokens is not None, "a layer with Engram remembers tokens"
            streams = self.engram.forward(ops, streams, step, own.tokens, groups)
        pre, post, comb = self.attn_hc.mix(ops, streams)
        y = self.attn_hc.input(ops, streams, handed.pre)
        entries = None if source is None else layers[source].entries
        o = self.attn.forward(ops, y, step, own, entries, rope, handed, groups)
        streams = ops.hc_post(o, streams, post, comb)
        handed.pre, post, comb = self.ffn_hc.mix(ops, streams)
        y = self.ffn_hc.input(ops, streams, pre)
        return ops.hc_post(self.ffn.forward(ops, y, step, groups), streams, post, comb)
