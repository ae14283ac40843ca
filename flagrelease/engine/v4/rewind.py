"""Taking back several tokens of a row: drafts that were not accepted.

The count of a row is enough for keys and entries. The keys of rejected tokens lie in ring slots that no visible key
needs, since the ring is a chunk longer than the window; the entry of a window that they completed is not visible before
the window is complete again, and is written anew then. The compressors' memories are rings of one or two windows, in
which a rejected token takes the slot of one that an incomplete window still needs: these are kept, and put back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.v4.cache import Cache, Pending


@dataclass(frozen=True, slots=True)
class Rewind:
    """What one step overwrites in the compressors' memories.

    Attributes:
        cache: the step's.
        starts: the tokens of each row before it.
        width: tokens that it appends to a row at most.
        kept: of each memory the slots in question [B, width], and what they held: kv and score [B, width, channels].
    """

    cache: Cache
    starts: tuple[int, ...]
    width: int
    kept: tuple[tuple[Pending, Tensor, Tensor, Tensor], ...]

    @classmethod
    def before(cls, cache: Cache, width: int) -> Rewind:
        """To be made before a step that appends up to `width` tokens to the rows of `cache`."""
        kept, starts = list[tuple[Pending, Tensor, Tensor, Tensor]](), tuple(cache.lengths)
        for layer in cache.layers:
            for pending in (layer.pending, layer.index_pending):
                if pending is not None:
                    place = torch.tensor(starts)[:, None] + torch.arange(width)
                    slots = (place % pending.size).to(pending.kv.device)
                    row = torch.arange(len(starts), device=slots.device)[:, None]
                    assert width <= pending.size, "a step that overwrites a slot twice cannot be taken back"
                    kept.append((pending, slots, pending.kv[row, slots], pending.score[row, slots]))
        return cls(cache, starts, width, tuple(kept))

    def take_back(self, row: int, count: int) -> None:
        """Forget the last `count` tokens of a row, which the step appended."""
        left = self.cache.lengths[row] - count
        first = left - self.starts[row]
        assert 0 <= first <= self.width, "only what the step appended can be taken back"
        for pending, slots, kv, score in self.kept:
            lost = slots[row, first : first + count]
            pending.kv[row, lost] = kv[row, first : first + count]
            pending.score[row, lost] = score[row, first : first + count]
        self.cache.lengths[row] = left
