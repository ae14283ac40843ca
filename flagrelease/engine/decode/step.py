"""One step of decoding, as the device sees it. Legend: B rows, W tokens a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.decode.branches import Branches
from flagrelease.engine.v4.cache import OVERLAP_RATIO


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
        branches: for what does not need each other.
        newest: int64 [W * B], the last position that each token sees; None: its own.
        ahead: positions that each token sees beside a window of them.
    """

    tokens: Tensor
    positions: Tensor
    visible: Tensor
    context: int
    reach: int
    width: int
    branches: Branches
    newest: Tensor | None = None
    ahead: int = 0

    @classmethod
    def at(
        cls, tokens: Tensor, positions: Tensor, context: int, reach: int, width: int, branches: Branches
    ) -> DecodeStep:
        """The step that appends `tokens` at `positions`."""
        visible = torch.div(positions + 1, OVERLAP_RATIO, rounding_mode="floor").int()
        return cls(tokens, positions, visible, context, reach, width, branches)

    def entries(self, ratio: int) -> int:
        """Compressed entries that the caches of a layer have room for; its ring begins there."""
        return self.context // ratio if ratio else 0
