"""One step of DeepSeek-V4.1 over a ragged batch: which tokens, at which positions, reading and writing which slots.

Integer work, done once a step and shared by all layers. Legend: B rows, S tokens of the longest row, W window, n
entries that the step completes in any row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.transfer import send
from flagrelease.engine.v4.step import BIN, Extent, Windows, plan_windows, window_slots
from flagrelease.engine.v41.cache import SharedCache
from flagrelease.model.v4.cache_size import ring_slots
from flagrelease.model.v41.config import V41Config


@dataclass(frozen=True, slots=True)
class SharedStep:
    """The numbers of one step; tensors are int64 unless said, on the model's device.

    Attributes:
        tokens: [B, S], padding is token 0.
        positions: [B, S], of padding 0.
        real: bool [B, S], which of them are tokens; None: there is no padding.
        image: bool [B, S], which of them are parts of images.
        row: [B, 1].
        ring_slot: [B, S]: where each token's key goes.
        window: int32 [B, S, W]: slots of the ring that each query sees, -1 = none.
        windows: by ratio > 0.
    """

    tokens: Tensor
    positions: Tensor
    real: Tensor | None
    image: Tensor
    row: Tensor
    ring_slot: Tensor
    window: Tensor
    windows: dict[int, Windows]

    def slot_of(self, slots: int) -> Tensor:
        """[B, S]: where each token goes in a ring of so many slots with a bin behind it."""
        slot = self.positions % slots
        return slot if self.real is None else torch.where(self.real, slot, BIN)


def plan_step(
    config: V41Config, tokens: Sequence[Sequence[int]], cache: SharedCache, device: torch.device
) -> SharedStep:  # fmt: skip
    """The step that appends `tokens[b]` to row b of `cache`. At least one row appends some."""
    counts = [len(row) for row in tokens]
    ends = [begun + count for begun, count in zip(cache.lengths, counts, strict=True)]
    padded = [[*row, *[0] * (max(counts) - len(row))] for row in tokens]
    ids, start, end = (send(torch.tensor(each, dtype=torch.int64), device) for each in (padded, cache.lengths, ends))
    extent = Extent.of(config, cache.lengths, ends, cache.context)
    start, end = start[:, None], end[:, None]
    place = torch.arange(ids.shape[1], device=device)[None]
    positions, real = start + place, place < end - start
    ring = ring_slots(config.sliding_window, cache.chunk)
    return SharedStep(
        tokens=ids,
        positions=positions * real,
        real=real if min(counts) < max(counts) else None,
        image=ids == config.image_token_id,
        row=torch.arange(len(ids), device=device)[:, None],
        ring_slot=torch.where(real, positions % ring, BIN),
        window=window_slots(extent.window, ring, positions, real).int(),
        windows={
            ratio: plan_windows(ratio, extent.completed[ratio], entries, 0, start, end, positions, real)
            for ratio, entries in extent.entries.items()
        },
    )
