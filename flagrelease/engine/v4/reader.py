"""`Reader`: pieces of prompts through the model, in passes of fixed sizes that are captured once and replayed.

A pass of a few hundred tokens is some thousands of short kernels, and the host takes longer to launch them than the
device to run them. So its numbers stay where they are: tokens, rows, and how far each row has grown are tensors that
one copy fills, and the pass computes slots, windows and masks from them. What a pass has room for beyond its pieces is
padding: it is written to no slot that is ever read, and no expert reads it.

Passes of several ranks hold their collectives, so all ranks capture and replay the same sizes in the same order. They
do, for a size follows from the pieces and the rows' lengths.

Legend: B rows of a pass, S tokens of each, M streams, H hidden.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flagrelease.engine.kernels.layout import doubled
from flagrelease.engine.transfer import send
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.model import Model
from flagrelease.engine.v4.rope import RopeTable
from flagrelease.engine.v4.step import Extent, lay_out

SHORTEST_REACH = 4096  # positions that the smallest pass can see; the others double
SHORTEST = 64  # tokens of a row in the smallest pass; the others double
LARGEST = 1024  # tokens of all rows in the largest one: with more the device takes longer than the host
MOST_KEPT = 24  # passes; one that was not used for longest is captured anew


class _Size(NamedTuple):
    rows: int
    tokens: int
    reach: int


class Reader:
    """Reads into the rows of one cache, on every rank alike. What is too large for a captured pass is read plainly."""

    def __init__(self, model: Model, cache: Cache, *, fixed: bool) -> None:
        """`fixed`: let passes of at most `LARGEST` tokens have fixed sizes; captured where the device can be."""
        self._model, self._cache, self._fixed = model, cache, fixed
        self._largest = min(LARGEST, doubled(SHORTEST, cache.chunk) * len(cache.lengths))
        self._passes = OrderedDict[_Size, Callable[[], None]]()
        self._tables: list[RopeTable] = []  # read by captured passes: the model drops its own for longer ones
        self._pool = model.device.memory_pool()
        if fixed:
            place, config, dtype = model.head.device, model.config, model.numerics.dtype
            self._numbers = torch.zeros(2 * self._largest, dtype=torch.int64, device=place)
            self._streams = torch.zeros(self._largest, config.hc_mult, config.hidden_size, dtype=dtype, device=place)
            width = 0 if model.dspark is None else len(model.dspark.targets) * config.hidden_size
            self._features = torch.zeros(self._largest, width, dtype=dtype, device=place)

    def read(self, first: int, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Append at most a chunk of tokens to each of the rows from `first` on, as `Model.advance_watched`.

        Returns:
            The streams behind each token, [B, S, M, H], and what draft stages read of it, [B, S, ..]. The next call
            may overwrite both.

        Raises:
            UsageError: a row would pass the cache's context, an id is not in the vocabulary, or no row gets a token.
        """
        rows = slice(first, first + len(token_ids))
        part = self._cache.view(rows)
        size = self._size(part.lengths, token_ids)
        if size is None:
            result = self._model.advance_watched(part, token_ids)
        else:
            result = self._replay(size, first, part, token_ids)
        self._cache.lengths[rows] = part.lengths
        return result

    def forget(self) -> None:
        """Let go of the captured passes; a later one is captured anew."""
        self._passes.clear()
        self._tables.clear()

    @property
    def captured(self) -> int:
        """Passes that are kept."""
        return len(self._passes)

    def _size(self, lengths: Sequence[int], token_ids: Sequence[Sequence[int]]) -> _Size | None:
        """Of the pass that has room for them; None: there is none, or it would be mostly padding."""
        longest = max(map(len, token_ids))
        rows, tokens = doubled(1, len(token_ids)), doubled(SHORTEST, longest)
        if not self._fixed or longest > self._cache.chunk or rows * tokens > self._largest:
            return None
        return _Size(rows, tokens, min(doubled(SHORTEST_REACH, max(lengths) + longest), self._cache.context))

    def _replay(
        self, size: _Size, first: int, part: Cache, token_ids: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        model, (B, S, _) = self._model, size
        model.check_rows(part, token_ids)
        replay = self._pass(size)
        padded = [token for row in token_ids for token in _filled(row, S)]
        starts, idle = part.lengths, B - len(token_ids)
        ends = [begun + len(row) for begun, row in zip(starts, token_ids, strict=True)]
        places = range(first, first + len(token_ids))
        # Rows that the pass has beyond the pieces grow by nothing: they may be any.
        numbers = [*padded, *[0] * (idle * S), *_filled(starts, B), *_filled(ends, B), *_filled(places, B)]
        self._numbers[: len(numbers)].copy_(send(torch.tensor(numbers), self._numbers.device))
        replay()
        part.lengths[:] = ends
        read = slice(len(token_ids)), slice(max(map(len, token_ids)))
        streams = self._streams[: B * S].view(B, S, *self._streams.shape[1:])[read]
        return streams, streams if model.dspark is None else self._features[: B * S].view(B, S, -1)[read]

    def _pass(self, size: _Size) -> Callable[[], None]:
        if not self._model.ops.captured:
            return lambda: self._run(size)
        if size not in self._passes:
            if len(self._passes) == MOST_KEPT:
                self._model.device.synchronize()  # it may be running
                self._passes.popitem(last=False)
            self._numbers.zero_()  # no row grows while it is run for the recording
            self._passes[size] = self._model.device.capture(lambda: self._run(size), self._pool)
            self._tables += self._model.ropes
        self._passes.move_to_end(size)
        return self._passes[size]

    def _run(self, size: _Size) -> None:
        model, cache, (B, S, reach) = self._model, self._cache, size
        tokens = self._numbers[: B * S].view(B, S)
        start, end, rows = self._numbers[B * S : B * S + 3 * B].view(3, B)
        extent = Extent.covering(model.config, S, reach, cache.context)
        step = lay_out(
            model.config, tokens, start, end, rows, extent, cache.context, cache.chunk, cache.drafts, ragged=True
        )
        streams, features = model.watched(step, cache.layers)
        self._streams[: B * S] = streams.flatten(0, 1)
        if model.dspark is not None:
            self._features[: B * S] = features.flatten(0, 1)


def _filled(values: Sequence[int], count: int) -> list[int]:
    return [*values, *[0] * (count - len(values))]
