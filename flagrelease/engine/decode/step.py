"""One step of decoding, as the device sees it. Legend: B rows, W tokens a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.cache import OVERLAP_RATIO


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """What every layer reads. Shapes are those of the batch, so a captured step is replayed with other numbers.

    Attributes:
        tokens: int64 [W * B], first those that all rows get first; of a row without a token any id of the vocabulary.
        positions: int64 [W * B], where each token goes; -1: there is none.
        visible: int32 [W * B], complete windows of the overlapping ratio, from which the indexer chooses.
        context: tokens that the caches have room for.
        reach: no position is as large as this.
        width: W.
    """

    tokens: Tensor
    positions: Tensor
    visible: Tensor
    context: int
    reach: int
    width: int

    @classmethod
    def at(cls, tokens: Tensor, positions: Tensor, context: int, reach: int, width: int = 1) -> DecodeStep:
        """The step that appends `tokens` at `positions`."""
        visible = torch.div(positions + 1, OVERLAP_RATIO, rounding_mode="floor").int()
        return cls(tokens, positions, visible, context, reach, width)

    def apart(self) -> list[tuple[slice, DecodeStep]]:
        """Steps of one token a row, to be taken in this order: a cache has a row of its own for each sequence only."""
        rows = len(self.tokens) // self.width
        parts = [slice(n * rows, (n + 1) * rows) for n in range(self.width)]
        return [
            (part, DecodeStep(self.tokens[part], self.positions[part], self.visible[part], self.context, self.reach, 1))
            for part in parts
        ]

    def entries(self, ratio: int) -> int:
        """Compressed entries that the caches of a layer have room for; its ring begins there."""
        return self.context // ratio if ratio else 0
