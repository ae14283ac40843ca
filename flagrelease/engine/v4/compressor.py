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
from flagrelease.engine.v4.cache import OVERLAP_RATIO, Pending
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

    def entries(self, ops: Operators, x: Tensor, step: Step, pending: Pending, rope: RopeTable) -> Tensor | None:
        """Remember the step's tokens x [B, S, H]; return the entries of the windows they complete, [B, n, d], if any.

        Entries are normed and rotated to their window's first position, not yet rounded to any cache format. Where a
        row completes fewer than n windows the rest are to go to the bin (`Windows.entry_slot`).
        """
        windows = step.windows[self.ratio]
        kv = ops.linear(x, self.wkv, torch.float32)
        score = ops.add(ops.linear(x, self.wgate, torch.float32), self.ape[windows.phase], torch.float32)
        pooled = self._pool(ops, kv, score, step, pending)
        pending.kv[step.cache_row, windows.pending_slot] = kv
        pending.score[step.cache_row, windows.pending_slot] = score
        if pooled is None:
            return None
        entries = ops.rms_norm(pooled.to(x.dtype), self.norm, self.eps)
        cos, sin = rope.rows(windows.entry_position)
        rotated = entries[..., -2 * cos.shape[-1] :]
        ops.apply_rope(rotated, cos, sin, out=rotated)
        return entries

    def _pool(self, ops: Operators, kv: Tensor, score: Tensor, step: Step, pending: Pending) -> Tensor | None:
        windows = step.windows[self.ratio]
        if not windows.source.shape[1]:
            return None
        source = step.row[..., None], windows.source
        before = (pending.kv, pending.score) if step.rows is None else (pending.kv[step.rows], pending.score[step.rows])
        kv = torch.cat((before[0], kv), 1)[source]  # [B, n, slots, c]
        score = torch.cat((before[1], score), 1)[source]
        if self.ratio == OVERLAP_RATIO:
            kv, score = _overlap(kv, self.ratio), _overlap(score, self.ratio)
        return ops.compress_pool(kv, score)


def _overlap(x: Tensor, ratio: int) -> Tensor:
    """[.., 2 ratio, 2d] -> [.., 2 ratio, d]: first channels of the previous window, second of the current one."""
    previous, current = x.chunk(2, dim=-1)
    return torch.cat((previous[..., :ratio, :], current[..., ratio:, :]), dim=-2)
