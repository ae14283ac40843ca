"""The model and its caches as all ranks run them: the leader orders, the others do the same."""

from __future__ import annotations

import torch
from torch import Tensor

from flagrelease.engine.agreement import require_same_options
from flagrelease.engine.batch.orders import Decode, Draft, Next, Order, Prefill, Stop, decode, encode
from flagrelease.engine.decode.stepper import choose_stepper
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.model import Model
from flagrelease.errors import UsageError


class Runner:
    """A model with `rows` sequences of at most `context` tokens."""

    def __init__(self, model: Model, rows: int, context: int, *, speculate: bool = False) -> None:
        """Allocate the caches, on every rank. `speculate`: also the MTP stage's.

        Raises:
            UsageError: the ranks were started with different options; a step appends one token only, but is to hold
                a draft too; the model has no MTP stage.
            ResourceError: the device has no room.
        """
        require_same_options(model.groups.control, {"--batch": rows, "--context": context, "--speculate": speculate})
        self.model, self.rows, self.context, self.speculate = model, rows, context, speculate
        self._cache = model.new_cache(rows, context)
        if speculate and self._cache.chunk < 2:
            raise UsageError("speculation appends two tokens in a step: chunk and context must be at least 2")
        self._drafts = model.new_draft_cache(rows, context) if speculate else None
        self._stepper = choose_stepper(model, self._cache, self._drafts)
        self._latest = torch.zeros(rows, dtype=torch.int64, device=model.head.device)

    @property
    def chunk(self) -> int:
        """Tokens of a prompt in one order, at most."""
        return self._cache.chunk

    def keep(self, rows: slice | Tensor, tokens: Tensor) -> None:
        """On the leader: `Next` is to append `tokens` [N] to `rows` [N]. The device may still be choosing them."""
        self._latest[rows] = tokens

    def run(self, order: Prefill | Decode | Next | Draft) -> Tensor:
        """On the leader: do it on all ranks.

        Returns:
            float32 logits: [T or 1, V] of a prompt's piece, [rows, 1 or 2, V] of a step, [rows, V] of a draft.
        """
        self._tell(order)
        return self._do(order)

    def stop(self) -> None:
        """On the leader: let the other ranks return from `follow`."""
        self._tell(Stop())
        self._stepper.forget()

    def follow(self) -> None:
        """On the other ranks: do what the leader orders until it stops."""
        while not isinstance(order := decode(self.model.groups.hear()), Stop):
            self._do(order)
        self._stepper.forget()

    def _tell(self, order: Order) -> None:
        if self.model.groups.mp > 1:
            self.model.groups.tell(encode(order))

    def _do(self, order: Prefill | Decode | Next | Draft) -> Tensor:
        if isinstance(order, Next):
            self.model.groups.share(self._latest)
            return self._stepper.follow(self._latest, order.rows)
        if isinstance(order, Prefill):
            return self._prefill(order)
        if isinstance(order, Decode):
            return self._decode(order)
        return self._stepper.draft(order.following)

    def _prefill(self, order: Prefill) -> Tensor:
        if order.first:
            self._cache.free(order.row)
        part = self._cache.view(order.row)
        streams = self.model.advance(part, [order.tokens])
        self._cache.lengths[order.row] = part.lengths[0]
        if self._drafts is not None:
            self._prefill_drafts(self._drafts, order, streams)
        return self.model.read_out(streams[0] if order.every else streams[0, -1:])

    def _prefill_drafts(self, drafts: Cache, order: Prefill, streams: Tensor) -> None:
        """The MTP stage reads the piece too, all but the prompt's last position: what follows that is not known yet."""
        if order.first:
            drafts.free(order.row)
        following = order.tokens[1:] + (() if order.following is None else (order.following,))
        if following:
            part = drafts.view(order.row)
            self.model.draft(part, streams, [following])
            drafts.lengths[order.row] = part.lengths[0]
        self._stepper.keep(order.row, streams[0, -1])

    def _decode(self, order: Decode) -> Tensor:
        for row in order.rejected:
            self._cache.take_back(row)
        return self._stepper.advance(order.tokens)
