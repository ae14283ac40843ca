"""`V41Model`: DeepSeek-V4.1 as it is loaded, for text.

Legend: B rows, S tokens of a step, M streams, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from flagrelease.device import Device
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.loaded import LoadedModel
from flagrelease.engine.numerics import Numerics
from flagrelease.engine.parallel import Groups
from flagrelease.engine.v4.rope import RopeTable
from flagrelease.engine.v41.block import SharedBlock
from flagrelease.engine.v41.cache import SharedCache
from flagrelease.engine.v41.engram import Engram
from flagrelease.engine.v41.hashing import primes
from flagrelease.engine.v41.indexer import Handed
from flagrelease.engine.v41.step import SharedStep, plan_step
from flagrelease.engine.v41.vocabulary import compressed_ids
from flagrelease.engine.weights import Weights
from flagrelease.errors import UsageError
from flagrelease.model.v41.config import V41Config


@dataclass(slots=True)
class V41Model(LoadedModel[V41Config, SharedCache]):
    """The loaded parts, or this rank's slices of them. What `read_out` reads is the sum of the streams, [.., H].

    `stale_index_keys`: score as DeepSeek's code does while it decodes, for comparing with what it wrote. There the
    index keys have one place for all layers, which a layer of pairs fills only when a pair is complete; in between it
    scores by the keys that the last source left there in the step before. Prefill never does, so it is a defect; by
    default every layer's own keys are read.
    """

    blocks: tuple[SharedBlock, ...]
    norm: Tensor
    stale_index_keys: bool = field(default=False, kw_only=True)
    _ropes: dict[bool, RopeTable] = field(default_factory=dict, kw_only=True)

    @classmethod
    def build(
        cls, weights: Weights, config: V41Config, numerics: Numerics, ops: Operators, groups: Groups, device: Device,
        folder: Path, *, mtp: bool,
    ) -> V41Model:  # fmt: skip
        """Take every module's tensors from `weights`; `folder` has the tokenizer.

        Raises:
            UsageError: drafts are wanted; nothing was read.
            CheckpointError: the tokenizer or the tables are not this model's.
        """
        if mtp:
            raise UsageError("drafts: DeepSeek-V4.1's draft stages are not run yet; load it without them")
        words, of_layer = compressed_ids(folder, config), primes(config)

        def engram(layer: int) -> Engram | None:
            if layer not in of_layer:
                return None
            return Engram.load(weights.at(f"layers.{layer}.engram"), config, layer, of_layer[layer], words, groups)

        return cls(
            config=config,
            numerics=numerics,
            ops=ops,
            groups=groups,
            device=device,
            embed=weights.plain("embed.weight"),
            head=weights.plain("head.weight"),
            blocks=tuple(
                SharedBlock.load(weights.at(f"layers.{layer}"), config, layer, engram(layer), numerics, groups)
                for layer in range(config.num_hidden_layers)
            ),
            norm=weights.plain("norm.weight"),
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """Where Engram's tables are."""
        layers = ((block.layer, block.engram) for block in self.blocks)
        return tuple(f"Engram of layer {layer}: {memory.table.how}" for layer, memory in layers if memory is not None)

    def allocate(self, rows: int, context: int, chunk: int, place: torch.device) -> SharedCache:
        """See `LoadedModel`."""
        return SharedCache.allocate(self.config, rows, context, chunk, self.numerics, place)

    def cover(self, context: int) -> None:
        """See `LoadedModel`."""
        for compressed in (False, True):
            table = self._ropes.get(compressed)
            if table is None or len(table.cos) < context:
                self._ropes[compressed] = RopeTable.build(self.config, context, self._place, compressed=compressed)

    def run_step(self, cache: SharedCache, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The sum of the streams behind each token, [B, S, H], twice: no draft stage reads anything else yet."""
        step = plan_step(self.config, token_ids, cache, self._place)
        streams = torch.stack([self.embed_tokens(step.tokens)] * self.config.hc_mult, -2)
        handed = self.begin(step, cache)
        for block in self.blocks:
            rope = self.rope(block.layer)
            streams = block.forward(self.ops, streams, step, cache.layers, rope, handed, self.groups)
        summed = self.ops.hc_collapse(streams, handed.pre)
        return summed, summed

    def begin(self, step: SharedStep, cache: SharedCache) -> Handed:
        """What the first layer is handed: the first stream alone is its input."""
        pre = torch.zeros(*step.tokens.shape, self.config.hc_mult, dtype=torch.float32, device=self._place)
        pre[..., 0] = 1
        handed, last = Handed(pre), cache.layers[self.config.kv_source_layer_ids[-1]].entries
        if self.stale_index_keys and step.tokens.shape[1] == 1 and last is not None:
            handed.stale_keys = last.index_keys
        return handed

    def rope(self, layer: int) -> RopeTable:
        """The table of a layer, as long as the longest cache so far."""
        return self._ropes[self.config.compress_ratios[layer] > 0]

    def read_out(self, behind: Tensor) -> Tensor:
        """[.., H] -> float32 logits [.., V]."""
        return self.to_logits(self.ops.rms_norm(behind, self.norm, self.config.rms_norm_eps))
