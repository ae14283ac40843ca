"""DeepSeek-V4's forward pass: the parts of the model, and what one step computes with them.

Legend: B rows, S tokens of a step, M streams, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flagrelease.engine.loaded import LoadedModel
from flagrelease.engine.v4.block import Block
from flagrelease.engine.v4.cache import Cache, LayerCache
from flagrelease.engine.v4.dspark import DsparkStages, pool
from flagrelease.engine.v4.hyper_connection import HyperHead
from flagrelease.engine.v4.mtp import MtpStage
from flagrelease.engine.v4.rope import RopeTable
from flagrelease.engine.v4.step import Step
from flagrelease.errors import UsageError
from flagrelease.model.v4.config import ModelConfig


@dataclass(slots=True)
class Network(LoadedModel[ModelConfig, Cache]):
    """The loaded parts, or this rank's slices of them.

    `mtp` (the preview's) and `dspark` are None unless draft stages were asked for; a release has one kind of them.
    """

    blocks: tuple[Block, ...]
    final: HyperHead
    mtp: MtpStage | None
    dspark: DsparkStages | None = None
    _ropes: dict[bool, RopeTable] = field(default_factory=dict)

    def watched(self, step: Step, layers: Sequence[LayerCache]) -> tuple[Tensor, Tensor]:
        """The streams [B, S, M, H] behind the last layer, and what draft stages read, as `Model.run_step`.

        The layers' caches are extended.
        """
        groups, shape = self.groups.spread(step.tokens.numel()), step.tokens.shape
        embedded = self.embed_tokens(step.tokens)
        if groups.is_spread:
            embedded = groups.own(embedded.flatten(0, 1))
        streams = torch.stack([embedded] * self.config.hc_mult, -2)
        targets = () if self.dspark is None else self.dspark.targets
        pooled = list[Tensor]()
        for layer, (block, cache) in enumerate(zip(self.blocks, layers, strict=True)):
            streams = block.forward(self.ops, streams, step, cache, self.rope(block.attn.ratio), groups)
            if layer in targets:
                pooled.append(pool(streams))
        streams = groups.together(streams, (*shape, *streams.shape[-2:]))
        if not pooled:
            return streams, streams
        features = torch.cat(pooled, -1)
        return streams, groups.together(features, (*shape, features.shape[-1]))

    def read_out(self, streams: Tensor) -> Tensor:
        """Streams [.., M, H] -> float32 logits [.., V]."""
        return self.to_logits(self.final.collapse(self.ops, streams))

    @property
    def most_drafts(self) -> int:
        """Tokens that the draft stages guess at once; 0: the model was loaded without."""
        if self.dspark is not None:
            return self.dspark.size
        return 0 if self.mtp is None else 1

    @property
    def features(self) -> tuple[int, ...]:
        """The shape of what draft stages read of a position: its streams, or the pooled streams of DSpark's targets."""
        if self.dspark is None:
            return self.config.hc_mult, self.config.hidden_size
        return (len(self.dspark.targets) * self.config.hidden_size,)

    def keep_features(self, layer: int, streams: Tensor, out: Tensor) -> None:
        """Write what draft stages read of a layer's streams [.., M, H] to its part of `out` [.., *features]."""
        if self.dspark is None:
            if layer == len(self.blocks) - 1:
                out.copy_(streams)
        elif layer in self.dspark.targets:
            width = streams.shape[-1]
            first = self.dspark.targets.index(layer) * width
            out[..., first : first + width].copy_(pool(streams))

    def require_mtp(self) -> MtpStage:
        """The preview's draft stage.

        Raises:
            UsageError: the model was loaded without it, or has stages of DSpark.
        """
        if self.dspark is not None:
            raise UsageError("the model's draft stages are DSpark's, which `open_drafting` runs")
        if self.mtp is None:
            raise UsageError("the model was loaded without its MTP stage: load(..., mtp=True)")
        return self.mtp

    def rope(self, ratio: int) -> RopeTable:
        """The table of layers with this compression ratio, as long as the longest cache so far."""
        return self._ropes[ratio > 0]

    @property
    def ropes(self) -> tuple[RopeTable, ...]:
        """All tables so far."""
        return tuple(self._ropes.values())

    def cover(self, context: int) -> None:
        """Make the RoPE tables reach `context` positions."""
        for compressed in (False, True):
            table = self._ropes.get(compressed)
            if table is None or len(table.cos) < context:
                self._ropes[compressed] = RopeTable.build(self.config, context, self._place, compressed=compressed)
