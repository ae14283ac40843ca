"""Attention of one layer: its own sliding window, and shared entries that an indexer chose, in one softmax.

One vector per position is key and value for all heads. The output is rotated back to position 0, projected per o-group
to o_lora_rank, then to the hidden size.

Legend: B rows, S tokens, H hidden, NH local heads, HD head_dim, QR q_lora_rank, G local o-groups, OR o_lora_rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.linear import Linear, join, project
from flagrelease.engine.numerics import Numerics
from flagrelease.engine.parallel import Groups
from flagrelease.engine.v4.rope import RopeTable
from flagrelease.engine.v41.cache import LayerKeys, SharedEntries
from flagrelease.engine.v41.entries import EntrySource
from flagrelease.engine.v41.indexer import Handed, SharedIndexer
from flagrelease.engine.v41.step import SharedStep
from flagrelease.engine.weights import Weights
from flagrelease.model.v41.config import V41Config


@dataclass(frozen=True, slots=True)
class SharedAttention:
    """Of one layer.

    Attributes:
        latents: wq_a and wkv as one.
        wo_a: [G, OR, K].
        source: the layer whose entries this one reads; None: it reads none.
        makes: what makes these entries, if this layer does.
        indexer: what chooses among them, if this layer does.
    """

    latents: Linear
    q_norm: Tensor
    wq_b: Linear
    kv_norm: Tensor
    sink: Tensor
    wo_a: Tensor
    wo_b: Linear
    source: int | None
    makes: EntrySource | None
    indexer: SharedIndexer | None
    head_dim: int
    rope_dim: int
    eps: float
    numerics: Numerics
    key_group: int

    @classmethod
    def load(
        cls, weights: Weights, config: V41Config, layer: int, numerics: Numerics, groups: Groups
    ) -> SharedAttention:
        """Of layer number `layer`, whose tensors are under `weights`."""
        ratio = config.compress_ratios[layer]
        wo_a, scale = weights.grouped("wo_a", config.o_lora_rank)
        assert scale is None, "blocks of 32 x 32 are decoded"
        return cls(
            latents=join(weights.linear("wq_a"), weights.linear("wkv"))[0],
            q_norm=weights.plain("q_norm.weight"),
            wq_b=weights.linear("wq_b"),
            kv_norm=weights.plain("kv_norm.weight"),
            sink=weights.exact("attn_sink"),
            wo_a=wo_a,
            wo_b=weights.linear("wo_b"),
            source=max(one for one in config.kv_source_layer_ids if one <= layer) if ratio else None,
            makes=EntrySource.load(weights, config, ratio, numerics) if layer in config.kv_source_layer_ids else None,
            indexer=SharedIndexer.load(weights.at("indexer"), config, layer, numerics, groups)
            if layer in config.index_source_layer_ids
            else None,
            head_dim=config.head_dim,
            rope_dim=config.qk_rope_head_dim,
            eps=config.rms_norm_eps,
            numerics=numerics,
            key_group=config.activation_group,
        )

    def forward(
        self, ops: Operators, y: Tensor, step: SharedStep, own: LayerKeys, entries: SharedEntries | None,
        rope: RopeTable, handed: Handed, groups: Groups,
    ) -> Tensor:  # fmt: skip
        """y [B, S, H] -> [B, S, H]; extends the caches by the step's tokens.

        Args:
            ops: operators.
            y: the layer's input.
            step: which positions these are.
            own: this layer's buffers.
            entries: those of `source`.
            rope: of layers like this one.
            handed: what was chosen before, or is chosen here.
            groups: the ranks.
        """
        cos, sin = rope.rows(step.positions)
        (both,) = project(ops, y, self.latents)
        qr, kv = both.tensor_split([len(self.q_norm)], -1)
        own.window[step.row, step.ring_slot] = self._keys(ops, kv, cos, sin)
        qr = ops.rms_norm(qr, self.q_norm, self.eps)
        (q, *index) = project(ops, qr, *([self.wq_b] if self.indexer is None else [self.wq_b, self.indexer.wq_b]))
        if entries is not None:
            if self.makes is not None:
                self.makes.extend(ops, y, step, entries, rope)
            if self.indexer is not None:
                self.indexer.choose(ops, y, index[0], step, entries, rope, handed)
        q = q.view(*q.shape[:-1], -1, self.head_dim)
        self._rotate(ops, q, cos[:, :, None], sin[:, :, None])
        shared = None if entries is None else entries.keys
        chosen = None if entries is None else handed.chosen
        o = ops.shared_attention(q, own.window, shared, self.sink, step.window, chosen, self.head_dim**-0.5)
        self._rotate(ops, o, cos[:, :, None], sin[:, :, None], inverse=True)
        return self._project_out(ops, o, groups)

    def _keys(self, ops: Operators, kv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """What wkv made, [B, S, HD], as the cache holds it: rounded, if at all, in all its columns."""
        kv = ops.rms_norm(kv, self.kv_norm, self.eps)
        self._rotate(ops, kv, cos, sin)
        return ops.act_quant_roundtrip(kv, self.key_group) if self.numerics.quantise_kv else kv

    def _rotate(self, ops: Operators, x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> None:
        rotated = x[..., -self.rope_dim :]
        ops.apply_rope(rotated, cos, sin, inverse=inverse, out=rotated)

    def _project_out(self, ops: Operators, o: Tensor, groups: Groups) -> Tensor:
        """o [B, S, NH, HD] -> [B, S, H]. The sum over ranks is FP32."""
        by_group = o.reshape(*o.shape[:-2], self.wo_a.shape[0], self.wo_a.shape[2])
        y = ops.grouped_linear(by_group, self.wo_a, o.dtype).flatten(-2)
        (out,) = project(ops, y, self.wo_b, out_dtype=o.dtype if groups.mp == 1 else torch.float32)
        return groups.all_sum(out).to(o.dtype)
