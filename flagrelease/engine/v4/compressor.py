"""The compressor: a window of tokens becomes one cached entry, by a softmax over the window in each channel.

Ratio 128: windows of 128 tokens side by side. Ratio 4: each entry pools 8 tokens, the previous window's with the first
half of the channels and its own with the second.

Legend: B rows, S tokens, H hidden, d entry width, c channels (2d if windows overlap, else d), n windows completed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.v4.cache import Pending
from flagrelease.engine.v4.rope import RopeTable
from flagrelease.engine.v4.step import Step
from flagrelease.engine.weights import Weights
from flagrelease.model.v4.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Compressor:
    """`ape` FP32 [ratio, c], `wkv` and `wgate` [c, H], `norm` [d]."""

    ratio: int
    ape: Tensor
    wkv: Tensor
    wgate: Tensor
    norm: Tensor
    eps: float

    @classmethod
    def load(cls, weights: Weights, config: ModelConfig, ratio: int) -> Compressor:
        """Of an attention layer, or of its indexer."""
        wkv, wgate, norm = (weights.plain(f"{name}.weight") for name in ("wkv", "wgate", "norm"))
        return cls(ratio, weights.exact("ape"), wkv, wgate, norm, config.rms_norm_eps)

    @property
    def channels(self) -> int:
        """c, of what wkv and wgate each make of a token."""
        return len(self.wkv)

    def entries(
        self, ops: Operators, side: Tensor, step: Step, pending: Pending, rope: RopeTable, dtype: torch.dtype
    ) -> Tensor | None:
        """Remember the step's tokens; return the entries of the windows they complete, [B, n, d], if there are any.

        Entries are normed and rotated to their window's first position, not yet rounded to any cache format. Where a
        row completes fewer than n windows the rest are to go to the bin (`Windows.entry_slot`).

        Args:
            ops: operators.
            side: FP32 [B, S, 2c], the tokens through wkv and wgate.
            step: which positions these are.
            pending: the memory, extended.
            rope: of compressed layers.
            dtype: of the entries.
        """
        windows, c = step.windows[self.ratio], self.channels
        pooled = ops.compress_windows(
            side[..., :c], side[..., c:], self.ape, pending.kv, pending.score, step.rows, windows.source,
            windows.pending_slot, step.positions, dtype,
        )  # fmt: skip
        if not pooled.shape[1]:
            return None
        entries = ops.rms_norm(pooled, self.norm, self.eps)
        cos, sin = rope.rows(windows.entry_position)
        rotated = entries[..., -2 * cos.shape[-1] :]
        ops.apply_rope(rotated, cos, sin, out=rotated)
        return entries
