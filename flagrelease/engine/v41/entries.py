"""A source of shared keys: one entry for each token or pair of tokens, and the index key by which it is found.

Legend: B rows, S tokens, H hidden, HD head_dim, ID index_head_dim, n entries that a step completes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.numerics import Numerics
from flagrelease.engine.v4.rope import RopeTable
from flagrelease.engine.v41.cache import SharedEntries
from flagrelease.engine.v41.step import SharedStep
from flagrelease.engine.weights import Weights
from flagrelease.model.v41.config import V41Config


@dataclass(frozen=True, slots=True)
class EntrySource:
    """`wkv` [HD, H], or [2 HD, H] with wgate behind it where two tokens make an entry; `wk` [ID, HD]."""

    ratio: int
    wkv: Tensor
    norm: Tensor
    wk: Tensor
    k_norm: Tensor
    eps: float
    numerics: Numerics

    @classmethod
    def load(cls, weights: Weights, config: V41Config, ratio: int, numerics: Numerics) -> EntrySource:
        """Of an attention layer whose compression ratio is 1 or 2."""
        parts = ("wkv", "wgate") if ratio > 1 else ("wkv",)
        compressor, index = weights.at("compressor"), weights.at("indexer")
        return cls(
            ratio,
            torch.cat([compressor.plain(f"{part}.weight") for part in parts]),
            compressor.plain("norm.weight"),
            index.plain("wk.weight"),
            index.plain("k_norm.weight"),
            config.rms_norm_eps,
            numerics,
        )

    def extend(self, ops: Operators, y: Tensor, step: SharedStep, memory: SharedEntries, rope: RopeTable) -> None:
        """Write the entries that the step's tokens complete, from the layer's input y [B, S, H]."""
        latent = self._latents(ops, y, step, memory)
        if not latent.shape[1]:
            return
        windows = step.windows[self.ratio]
        cos, sin = rope.rows(windows.entry_position)
        key = ops.rms_norm(ops.linear(latent, self.wk, latent.dtype), self.k_norm, self.eps)
        for each in (key, latent):  # the index key is made of the latent before it is rotated
            rotated = each[..., -2 * cos.shape[-1] :]
            ops.apply_rope(rotated, cos, sin, out=rotated)
        if self.numerics.quantise_index:
            key, latent = ops.fp4_act_quant_roundtrip(key), ops.fp4_keys_roundtrip(latent)
        memory.index_keys[step.row, windows.entry_slot] = key
        memory.keys[step.row, windows.entry_slot] = latent

    def _latents(self, ops: Operators, y: Tensor, step: SharedStep, memory: SharedEntries) -> Tensor:
        """What the completed entries are made of, [B, n, HD]. Of two tokens a softmax in each channel weighs them."""
        if self.ratio == 1:
            return ops.rms_norm(ops.linear(y, self.wkv, y.dtype), self.norm, self.eps)
        assert memory.pending is not None, "pairs of tokens are remembered"
        kv, score = ops.linear(y, self.wkv, torch.float32).chunk(2, -1)
        windows = step.windows[self.ratio]
        no_bias = torch.zeros(self.ratio, kv.shape[-1], dtype=torch.float32, device=kv.device)
        pooled = ops.compress_windows(
            kv, score, no_bias, memory.pending.kv, memory.pending.score, None, windows.source, windows.pending_slot,
            step.positions, y.dtype,
        )  # fmt: skip
        return ops.rms_norm(pooled, self.norm, self.eps)
