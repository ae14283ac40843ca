"""One step of decoding, as the device sees it. Legend: B rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.cache import OVERLAP_RATIO


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """What every layer reads. Shapes are those of the batch, so a captured step is replayed with other numbers.

    Attributes:
        tokens: int64 [B]; of a row without a token any id of the vocabulary.
        positions: int64 [B], where each token goes; -1: this row gets none.
        visible: int32 [B], complete windows of the overlapping ratio, from which the indexer chooses.
        context: tokens that the caches have room for.
        reach: no position is as large as this.
    """

    tokens: Tensor
    positions: Tensor
    visible: Tensor
    context: int
    reach: int

    @classmethod
    def at(cls, tokens: Tensor, positions: Tensor, context: int, reach: int) -> DecodeStep:
        """The step that appends `tokens` at `positions`."""
        visible = torch.div(positions + 1, OVERLAP_RATIO, rounding_mode="floor").int()
        return cls(tokens, positions, visible, context, reach)

    def entries(self, ratio: int) -> int:
        """Compressed entries that the caches of a layer have room for; its ring begins there."""
        return self.context // ratio if ratio else 0
