"""The model and its cache as all ranks run them: the leader orders, the others do the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.cache import Cache
from flagrelease.engine.model import Model


@dataclass(frozen=True, slots=True)
class Order:
    """One call of the model. `prompt` goes to one row, or `feed` gives every row a token or None; both None: stop.

    Attributes:
        freed: rows that new sequences may take, emptied first.
        prompt: row, tokens, whether the logits after every token are wanted.
        feed: a token for each row that continues.
    """

    freed: tuple[int, ...] = ()
    prompt: tuple[int, tuple[int, ...], bool] | None = None
    feed: tuple[int | None, ...] | None = None


class Runner:
    """A model with `rows` sequences of at most `context` tokens."""

    def __init__(self, model: Model, rows: int, context: int) -> None:
        """Allocate the cache, on every rank."""
        self.model, self.rows, self.context = model, rows, context
        self._cache: Cache = model.new_cache(rows, context)

    def run(self, order: Order) -> Tensor:
        """On the leader: do it on all ranks.

        Returns:
            float32 logits: [T, V] or [1, V] for a prompt, [rows, V] for a feed.
        """
        return self._do(self.model.groups.from_leader(order))

    def stop(self) -> None:
        """On the leader: let the other ranks return from `follow`."""
        self.model.groups.from_leader(Order())

    def follow(self) -> None:
        """On the other ranks: do what the leader orders until it stops."""
        while True:
            order = self.model.groups.from_leader(Order())
            if order.prompt is None and order.feed is None:
                return
            self._do(order)

    def _do(self, order: Order) -> Tensor:
        for row in order.freed:
            self._cache.free(row)
        if order.feed is not None:
            return self.model.decode(self._cache, order.feed)
        assert order.prompt is not None
        row, tokens, every = order.prompt
        if every:
            return torch.cat(list(self.model.prefill_each(self._cache, row, tokens)))
        return self.model.prefill(self._cache, row, tokens)[None]
