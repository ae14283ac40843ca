"""Attention of one layer: sliding window, plus compressed entries (all of them, or those an indexer chooses).

One vector per position is key and value for all heads. The output is rotated back to position 0, projected per o-group
to o_lora_rank, then to the hidden size.

Legend: B rows, S tokens, H hidden, NH local heads, HD head_dim, QR q_lora_rank, G local o-groups, OR o_lora_rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.linear import Linear, join, project, project_rounded
from flagrelease.engine.numerics import KV_GROUP, Numerics
from flagrelease.engine.parallel import Groups
from flagrelease.engine.schemes import Rounded
from flagrelease.engine.v4.cache import OVERLAP_RATIO, LayerCache
from flagrelease.engine.v4.compressor import Compressor
from flagrelease.engine.v4.indexer import Indexer
from flagrelease.engine.v4.rope import RopeTable
from flagrelease.engine.v4.step import Step
from flagrelease.engine.weights import Weights
from flagrelease.model.v4.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Attention:
    """Of one layer.

    Attributes:
        latents: wq_a and wkv as one, which decoding multiplies; they are views of it.
        queries: wq_b and, if there is an indexer, its own as one, which decoding multiplies; they are views of it.
        wo_a: [G, OR, K]: K inputs of an o-group, or of its part that this rank holds; in FP8 codes or plain.
        wo_a_scale: [G, OR/128, K/128] of codes.
        side: what a compressed layer multiplies its input with beside that, as one: wkv and wgate of the compressor,
            of the indexer's, and the indexer's weights_proj, which are views of it.
    """

    ratio: int
    window: int
    latents: Linear
    queries: Linear
    wq_a: Linear
    q_norm: Tensor
    wq_b: Linear
    wkv: Linear
    kv_norm: Tensor
    sink: Tensor
    wo_a: Tensor
    wo_a_scale: Tensor | None
    wo_b: Linear
    side: Tensor | None
    compressor: Compressor | None
    indexer: Indexer | None
    head_dim: int
    rope_dim: int
    eps: float
    quantise_kv: bool
    stepwise_q_norm: bool

    @classmethod
    def load(
        cls, weights: Weights, config: ModelConfig, ratio: int, numerics: Numerics, groups: Groups
    ) -> Attention:  # fmt: skip
        """The layer under `weights`, whose compression ratio is 0, 4 or 128."""
        latents, wq_a, wkv = join(weights.linear("wq_a"), weights.linear("wkv"))
        wo_a, wo_a_scale = weights.grouped("wo_a", config.o_lora_rank)
        side, compressor, indexer = _load_side(weights, config, ratio, numerics, groups)
        queries = wq_b = weights.linear("wq_b")
        if indexer is not None:
            queries, wq_b, index_wq_b = join(wq_b, indexer.wq_b)
            indexer = replace(indexer, wq_b=index_wq_b)
        return cls(
            ratio=ratio,
            window=config.sliding_window,
            latents=latents,
            queries=queries,
            wq_a=wq_a,
            q_norm=weights.plain("q_norm.weight"),
            wq_b=wq_b,
            wkv=wkv,
            kv_norm=weights.plain("kv_norm.weight"),
            sink=weights.exact("attn_sink"),
            wo_a=wo_a,
            wo_a_scale=wo_a_scale,
            wo_b=weights.linear("wo_b"),
            side=side,
            compressor=compressor,
            indexer=indexer,
            head_dim=config.head_dim,
            rope_dim=config.qk_rope_head_dim,
            eps=config.rms_norm_eps,
            quantise_kv=numerics.quantise_kv,
            stepwise_q_norm=numerics.stepwise_q_norm,
        )

    def forward(
        self, ops: Operators, x: Rounded, step: Step, cache: LayerCache, rope: RopeTable, groups: Groups
    ) -> Tensor:
        """x [B, S, H], rounded for `latents`, -> [B, S, H]; extends the cache by the step's tokens."""
        cos, sin = rope.rows(step.positions)
        qr, kv = self._latents(ops, x)
        q = self._queries(ops, qr, cos, sin)
        cache.kv[step.cache_row, step.kv_slot[self.ratio]] = self.keys(ops, kv, cos, sin, like=cache.kv)
        visible = step.visible_slots[self.ratio]
        if self.side is not None:
            side = self._compress(ops, ops.linear(x.plain, self.side, torch.float32), step, cache, rope, x.plain.dtype)
            if self.indexer is not None:
                visible = torch.cat((self.indexer.choose(ops, side, qr, step, cache, rope, groups), visible), -1)
        return self._attend(ops, q, cache.kv, visible, (cos, sin), groups, step.rows)

    def forward_block(
        self, ops: Operators, x: Rounded, ring: Tensor, visible: Tensor, rope: tuple[Tensor, Tensor], groups: Groups
    ) -> Tensor:
        """Like `forward` for the block of a DSpark draft, whose keys are seen by the block alone and are not stored.

        Args:
            ops: operators.
            x: [B, S, H], of a layer without compression, rounded for `latents`.
            ring: [B, R, ..], the keys of positions before, as a cache holds them.
            visible: int32 [B, S, ..] into the ring's keys and, behind them, the block's; -1 = none.
            rope: cos and sin of the positions, [B, S, rope_dim / 2].
            groups: the ranks.

        Returns:
            [B, S, H].
        """
        qr, kv = self._latents(ops, x)
        q = self._queries(ops, qr, *rope)
        keys = torch.cat((ring, self.keys(ops, kv, *rope, like=ring)), 1)
        return self._attend(ops, q, keys, visible, rope, groups, None)

    def keys(self, ops: Operators, kv: Tensor, cos: Tensor, sin: Tensor, *, like: Tensor) -> Tensor:
        """The keys as a cache holds them, [.., HD] or rows of `pack_keys`, of what wkv made [.., HD]."""
        kv = ops.rms_norm(kv, self.kv_norm, self.eps)
        self._rotate(ops, kv, cos, sin)
        return self._as_cached(ops, kv, like)

    def _latents(self, ops: Operators, x: Rounded) -> tuple[Rounded, Tensor]:
        """x [.., H] -> the query latent [.., QR], normed and rounded for wq_b, and what wkv makes, [.., HD]."""
        (both,) = project_rounded(ops, x, self.latents)
        qr, kv = both.tensor_split([len(self.wq_a.weight)], -1)
        return self.wq_b.round(ops, ops.rms_norm(qr, self.q_norm, self.eps)), kv

    def _queries(self, ops: Operators, qr: Rounded, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, S, QR] -> [B, S, NH, HD]."""
        (q,) = project_rounded(ops, qr, self.wq_b)
        q = q.view(*q.shape[:-1], -1, self.head_dim)
        q = ops.rms_norm(q, None, self.eps, stepwise=self.stepwise_q_norm)
        self._rotate(ops, q, cos[:, :, None], sin[:, :, None])
        return q

    def _attend(
        self, ops: Operators, q: Tensor, keys: Tensor, visible: Tensor, rope: tuple[Tensor, Tensor], groups: Groups,
        rows: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Queries [B, S, NH, HD] over the visible ones of keys [B or more, .., HD] -> [B, S, H]; `rows`: see `Step`."""
        cos, sin = rope
        o = ops.sparse_attention(q, keys, self.sink, visible, self.head_dim**-0.5, rows)
        self._rotate(ops, o, cos[:, :, None], sin[:, :, None], inverse=True)
        return self._project_out(ops, o, groups)

    def _rotate(self, ops: Operators, x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> None:
        rotated = x[..., -self.rope_dim :]
        ops.apply_rope(rotated, cos, sin, inverse=inverse, out=rotated)

    def _as_cached(self, ops: Operators, kv: Tensor, like: Tensor) -> Tensor:
        """Rounded, under native numerics, to FP8 in all but the rotated dimensions; as rows of codes if `like` is."""
        if like.dtype == torch.uint8:
            return ops.pack_keys(kv)
        if self.quantise_kv:
            unrotated = kv[..., : -self.rope_dim]
            ops.act_quant_roundtrip(unrotated, KV_GROUP, out=unrotated)
        return kv

    def _compress(
        self, ops: Operators, side: Tensor, step: Step, cache: LayerCache, rope: RopeTable, dtype: torch.dtype
    ) -> Tensor:
        """Feed the compressor its columns of `side`, FP32 [B, S, ..]; returns the others."""
        assert self.compressor is not None
        assert cache.pending is not None
        inner = 2 * self.compressor.channels
        entries = self.compressor.entries(ops, side[..., :inner], step, cache.pending, rope, dtype)
        if entries is not None:
            cache.kv[step.cache_row, step.windows[self.ratio].entry_slot] = self._as_cached(ops, entries, cache.kv)
        return side[..., inner:]

    def _project_out(self, ops: Operators, o: Tensor, groups: Groups) -> Tensor:
        """o [B, S, NH, HD] -> [B, S, H]. The sum over ranks is FP32."""
        o = groups.gather_heads(o)
        partial = torch.float32 if groups.o_mode == "split" else o.dtype
        y = groups.sum_o_lora(self.project_groups(ops, o, partial)).to(o.dtype).flatten(-2)
        (out,) = project(ops, y, self.wo_b, out_dtype=o.dtype if groups.mp == 1 else torch.float32)
        return groups.sum_output(out).to(o.dtype)

    def project_groups(self, ops: Operators, o: Tensor, out_dtype: torch.dtype) -> Tensor:
        """o [.., NH, HD] through wo_a, group by group: [.., G, OR]."""
        by_group = o.reshape(*o.shape[:-2], self.wo_a.shape[0], self.wo_a.shape[2])
        if self.wo_a_scale is None:
            return ops.grouped_linear(by_group, self.wo_a, out_dtype)
        return ops.fp8_grouped_linear(by_group, self.wo_a, self.wo_a_scale, out_dtype)


def _load_side(
    weights: Weights, config: ModelConfig, ratio: int, numerics: Numerics, groups: Groups
) -> tuple[Tensor | None, Compressor | None, Indexer | None]:
    """The compressor and the indexer of a layer, if it has them, their plain weights joined."""
    if not ratio:
        return None, None, None
    compressor, indexer = Compressor.load(weights.at("compressor"), config, ratio), None
    parts = [compressor.wkv, compressor.wgate]
    if ratio == OVERLAP_RATIO:
        indexer = Indexer.load(weights.at("indexer"), config, numerics.quantise_index, groups)
        parts += [indexer.compressor.wkv, indexer.compressor.wgate, indexer.weights_proj]
    side = torch.cat(parts)
    views = iter(torch.split(side, [len(part) for part in parts]))
    compressor = replace(compressor, wkv=next(views), wgate=next(views))
    if indexer is not None:
        inner = replace(indexer.compressor, wkv=next(views), wgate=next(views))
        indexer = replace(indexer, compressor=inner, weights_proj=next(views))
    return side, compressor, indexer
