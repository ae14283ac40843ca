"""The indexer: cheap scores over shared entries, of which this layer and those after it read the best.

From one layer on the choice has two levels: that layer also finds the blocks of entries with the best scores, and later
indexers choose inside these. Legend: B rows, S tokens, IH indexer heads, ID index_head_dim, n entries, k chosen ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.linear import Linear
from flagrelease.engine.numerics import Numerics
from flagrelease.engine.parallel import Groups
from flagrelease.engine.v4.rope import RopeTable
from flagrelease.engine.v41.cache import SharedEntries
from flagrelease.engine.v41.step import SharedStep
from flagrelease.engine.weights import Weights
from flagrelease.model.v41.config import V41Config


@dataclass(slots=True)
class Handed:
    """What layers hand on to later ones within a step.

    Attributes:
        pre: FP32 [B, S, M], weights of the streams for the next sub-layer's input.
        chosen: int32 [B, S, k], entries that layers read until the next indexer, -1 = none.
        blocks: int32 [B, S, ..], blocks of entries that later indexers choose in.
        stale_keys: the index keys that DeepSeek's code would find in decoding, see `V41Model.stale_index_keys`.
    """

    pre: Tensor
    chosen: Tensor | None = field(default=None)
    blocks: Tensor | None = field(default=None)
    stale_keys: Tensor | None = field(default=None)


@dataclass(frozen=True, slots=True)
class SharedIndexer:
    """`weights_proj` [IH, H]. Every rank has all heads, as with V4.

    `makes_blocks`: this layer finds the blocks; `in_blocks`: it chooses inside them.
    """

    wq_b: Linear
    weights_proj: Tensor
    ratio: int
    head_dim: int
    topk: int
    block_size: int
    block_topk: int
    makes_blocks: bool
    in_blocks: bool
    numerics: Numerics

    @classmethod
    def load(
        cls, weights: Weights, config: V41Config, layer: int, numerics: Numerics, groups: Groups
    ) -> SharedIndexer:  # fmt: skip
        """Of attention layer number `layer`; the ranks give each other the heads that they have read."""
        cut = weights.linear("wq_b")
        scale = None if cut.scale is None else groups.gather_rows(cut.scale)
        return cls(
            wq_b=replace(cut, weight=groups.gather_rows(cut.weight), scale=scale),
            weights_proj=groups.gather_rows(weights.plain("weights_proj.weight")),
            ratio=config.compress_ratios[layer],
            head_dim=config.index_head_dim,
            topk=config.index_topk,
            block_size=config.candidate_block_size,
            block_topk=config.candidate_topk_blocks,
            makes_blocks=layer == config.candidate_source_layer_id,
            in_blocks=layer > config.candidate_source_layer_id,
            numerics=numerics,
        )

    def choose(
        self, ops: Operators, y: Tensor, q: Tensor, step: SharedStep, memory: SharedEntries, rope: RopeTable,
        handed: Handed,
    ) -> None:  # fmt: skip
        """Hand on the entries that each query attends to.

        Args:
            ops: operators.
            y: [B, S, H], the layer's input.
            q: [B, S, IH * ID], the query latent through wq_b.
            step: which positions these are.
            memory: of the source whose entries these are, extended by the step.
            rope: of layers that compress.
            handed: gets the choice.
        """
        q = q.view(*q.shape[:-1], -1, self.head_dim)
        cos, sin = (part[:, :, None] for part in rope.rows(step.positions))
        rotated = q[..., -2 * cos.shape[-1] :]
        ops.apply_rope(rotated, cos, sin, out=rotated)
        if self.numerics.quantise_index:
            q = ops.fp4_act_quant_roundtrip(q)
        windows = step.windows[self.ratio]
        keys = self._keys(step, memory, handed)[:, : windows.entries]
        # The formula scales the weights by (head_dim * heads)^(-1/2): one positive factor for all changes no order.
        scores = ops.indexer_scores(q, keys, ops.linear(y, self.weights_proj, y.dtype))
        if self.in_blocks:
            assert handed.blocks is not None, "an indexer before this one finds the blocks"
            handed.chosen = ops.topk_candidates(scores, windows.visible, self.topk, handed.blocks, self.block_size)
        else:
            handed.chosen = ops.topk_visible(scores, windows.visible, self.topk)
        if self.makes_blocks:
            handed.blocks = ops.candidate_blocks(scores, windows.visible, self.block_size, self.block_topk)

    def _keys(self, step: SharedStep, memory: SharedEntries, handed: Handed) -> Tensor:
        if handed.stale_keys is None or self.ratio == 1:
            return memory.index_keys
        # In DeepSeek's decoding a step that completes no entry finds the keys that another layer left.
        completes = (step.positions[:, :1] + 1) % self.ratio == 0
        slots = memory.index_keys.shape[1]
        return torch.where(completes[..., None], memory.index_keys, handed.stale_keys[:, :slots])
