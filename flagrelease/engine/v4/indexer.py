"""The indexer of ratio-4 layers: cheap scores over the compressed entries, of which attention reads the best.

Legend: B rows, S tokens, IH indexer heads, ID indexer head_dim, QR q_lora_rank, n compressed entries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.linear import Linear, project_rounded
from flagrelease.engine.parallel import Groups
from flagrelease.engine.schemes import Rounded
from flagrelease.engine.v4.cache import OVERLAP_RATIO, LayerCache
from flagrelease.engine.v4.compressor import Compressor
from flagrelease.engine.v4.rope import RopeTable
from flagrelease.engine.v4.step import Step
from flagrelease.engine.weights import Weights
from flagrelease.model.v4.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Indexer:
    """`weights_proj` [IH, H]. Every rank has all heads, though a release is cut by them."""

    wq_b: Linear
    weights_proj: Tensor
    compressor: Compressor
    head_dim: int
    topk: int
    quantise: bool

    @classmethod
    def load(cls, weights: Weights, config: ModelConfig, quantise: bool, groups: Groups) -> Indexer:
        """`quantise`: round queries and keys to FP4.

        The ranks give each other the heads that they have read, 4 MB a layer of Flash on each of two. With all heads a
        rank chooses by itself, and by one rank's scores. With its own heads only, it would wait in every step for the
        sum of the scores of all entries, which takes longer than to read those 4 MB.
        """
        compressor = Compressor.load(weights.at("compressor"), config, OVERLAP_RATIO)
        proj = groups.gather_rows(weights.plain("weights_proj.weight"))
        cut = weights.linear("wq_b")
        scale = None if cut.scale is None else groups.gather_rows(cut.scale)
        wq_b = replace(cut, weight=groups.gather_rows(cut.weight), scale=scale)
        return cls(wq_b, proj, compressor, config.index_head_dim, config.index_topk, quantise)

    def choose(
        self, ops: Operators, side: Tensor, qr: Rounded, step: Step, cache: LayerCache, rope: RopeTable, groups: Groups
    ) -> Tensor:
        """The entries that each query attends to: int32 [B, S, at most topk], -1 = none.

        Args:
            ops: operators.
            side: FP32 [B, S, 2c + IH], the layer's input through the compressor's weights and weights_proj.
            qr: [B, S, QR], the query latent, rounded for wq_b.
            step: which positions these are.
            cache: index keys, extended by the windows that the step completes.
            rope: of compressed layers.
            groups: of a spread step each rank chooses for its share of one row's queries, and the ranks exchange that.
        """
        inner = 2 * self.compressor.channels
        self._extend(ops, side[..., :inner], step, cache, rope, qr.plain.dtype)
        windows, (B, S) = step.windows[OVERLAP_RATIO], step.positions.shape
        shared_out = groups.is_spread and B == 1
        own = slice(groups.rank * S // groups.mp, (groups.rank + 1) * S // groups.mp) if shared_out else slice(S)
        (q,) = project_rounded(ops, qr.at(own), self.wq_b)
        q = q.view(B, -1, q.shape[-1] // self.head_dim, self.head_dim)
        cos, sin = rope.rows(step.positions[:, own, None])
        rotated = q[..., -2 * cos.shape[-1] :]
        ops.apply_rope(rotated, cos, sin, out=rotated)
        # The formula scales the weights by (head_dim * heads)^(-1/2): one positive factor for all changes no order.
        keys = self._keys(cache)[:, : windows.entries]
        scores = ops.indexer_scores(self._spread(ops, q), keys, side[:, own, inner:], step.rows)
        chosen = ops.topk_visible(scores, windows.visible[:, own], self.topk)
        return groups.together(chosen[0], (1, S, chosen.shape[-1])) if shared_out else chosen

    def _keys(self, cache: LayerCache) -> Tensor:
        if cache.index_k is None:
            raise ValueError("this layer's cache has no index keys")
        return cache.index_k

    def _extend(
        self, ops: Operators, side: Tensor, step: Step, cache: LayerCache, rope: RopeTable, dtype: torch.dtype
    ) -> None:
        if cache.index_pending is None:
            raise ValueError("this layer's cache has no index compressor state")
        entries = self.compressor.entries(ops, side, step, cache.index_pending, rope, dtype)
        if entries is not None:
            keys = self._keys(cache)
            coded = keys.dtype == torch.uint8
            entries = ops.pack_index_keys(ops.hadamard(entries)) if coded else self._spread(ops, entries)
            keys[step.cache_row, step.windows[OVERLAP_RATIO].entry_slot] = entries

    def _spread(self, ops: Operators, x: Tensor) -> Tensor:
        """Hadamard spreads outliers over all dimensions (and changes no product), so that FP4 keeps more."""
        x = ops.hadamard(x)
        return ops.fp4_act_quant_roundtrip(x) if self.quantise else x
