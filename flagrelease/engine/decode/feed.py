"""The numbers of a step in tensors that stay where they are, and steps captured once for each size and replayed.

Legend: B rows, W tokens a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flagrelease.engine.decode.branches import Branches
from flagrelease.engine.decode.recordings import Recordings
from flagrelease.engine.decode.step import DecodeStep
from flagrelease.engine.kernels.layout import doubled
from flagrelease.engine.transfer import send
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.model import Model

SHORTEST_REACH = 4096  # positions that the smallest captured step can see; the others double

Run = Callable[[DecodeStep], None]


class Feed:
    """`tokens` and `positions` are int64 [W * B] with room for `width` tokens a row: first each row's first token."""

    def __init__(self, model: Model, cache: Cache, width: int) -> None:
        """For the rows of `cache`, which has room for so many tokens at once, and can take back all but the first."""
        assert width <= cache.chunk, "a key that a row's first token sees would be overwritten by its last"
        assert width <= cache.drafts + 1, "kernels take all tokens of a row at once: a compressor needs spare slots"
        self._model, self._cache, self._width = model, cache, width
        self._rows = len(cache.lengths)
        place = model.head.device
        self.tokens = torch.zeros(width * self._rows, dtype=torch.int64, device=place)
        self.positions = torch.full((width * self._rows,), -1, dtype=torch.int64, device=place)
        self._branches = Branches(model.ops, model.device)
        self._recordings = Recordings(model)

    def advance(self, token_ids: Sequence[Sequence[int]], run: Run) -> int:
        """Run the step that appends `token_ids[b]` to row b of the cache, at most `width` each.

        `run` queues the step's work and is captured. Returns the most tokens that a row got.

        Raises:
            UsageError: a row would pass the cache's context, an id is not in the vocabulary, or no row gets a token.
        """
        self._model.check_rows(self._cache, token_ids)
        lengths, width = self._cache.lengths, max(map(len, token_ids))
        assert width <= self._width, "a step appends at most its width"
        places = [[_nth(tokens, n) for tokens in token_ids] for n in range(self._width)]
        positions = [
            [lengths[row] + n if token is not None else -1 for row, token in enumerate(tokens)]
            for n, tokens in enumerate(places)
        ]
        self._fill(self.tokens, [token or 0 for tokens in places for token in tokens])
        self._fill(self.positions, [position for each in positions for position in each])
        for row, tokens in enumerate(token_ids):
            lengths[row] += len(tokens)
        rows = max(row for row, tokens in enumerate(token_ids) if tokens) + 1
        self.step(width, rows, max(map(max, positions)), run)
        return width

    def follow(self, latest: Tensor, rows: Sequence[int], run: Run) -> None:
        """Run the step that appends a token to each of `rows` of the cache: that of the row in `latest`, int64 [B].

        Nothing waits for the device, where `latest` may still be on its way.

        Raises:
            UsageError: a row would pass the cache's context.
        """
        lengths, positions = self._cache.lengths, [-1] * len(self.positions)
        for row in rows:
            self._cache.check_room(row, 1)
            positions[row] = lengths[row]
            lengths[row] += 1
        self.tokens[: self._rows].copy_(latest)
        self._fill(self.positions, positions)
        self.step(1, max(rows) + 1, max(positions), run)

    def step(self, width: int, rows: int, last: int, run: Run) -> None:
        """Run what the tensors say: `width` tokens for each of the first `rows`; `last` is the largest position."""
        width = min(doubled(1, width), self._width)
        rows = min(doubled(1, rows), self._rows)
        reach = min(doubled(SHORTEST_REACH, last + 1), self._cache.context)
        self._recordings.run((width, rows, reach), lambda: run(self._at(width, rows, reach)))

    def _fill(self, there: Tensor, values: Sequence[int]) -> None:
        there.copy_(send(torch.tensor(values, dtype=torch.int64), there.device))

    def forget(self) -> None:
        """Let go of the captured steps; a later step is captured anew."""
        self._recordings.forget()

    def _at(self, width: int, rows: int, reach: int) -> DecodeStep:
        # Side by side, as kernels address them: reshaped, two tokens of one row would be a view with gaps.
        tokens, positions = (
            every.view(self._width, self._rows)[:width, :rows].contiguous().view(-1)
            for every in (self.tokens, self.positions)
        )
        return DecodeStep.at(tokens, positions, self._cache.context, reach, width, self._branches)


def _nth(tokens: Sequence[int], n: int) -> int | None:
    return tokens[n] if n < len(tokens) else None
