"""The model and its caches as all ranks run them: the leader orders, the others do the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flagrelease.engine.agreement import require_same_options
from flagrelease.engine.batch.orders import (
    Decode,
    Draft,
    Load,
    Next,
    Order,
    Prefill,
    Save,
    Stop,
    Together,
    decode,
    encode,
)
from flagrelease.engine.decode.stepper import choose_stepper
from flagrelease.engine.v4.cache import Cache, SavedRow
from flagrelease.engine.v4.model import Model
from flagrelease.errors import UsageError

_FOR_PASSES = 1 << 30  # bytes that are not given to what is kept


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
        self._saved: dict[int, tuple[SavedRow, ...]] = {}
        self._latest = torch.zeros(rows, dtype=torch.int64, device=model.head.device)

    @property
    def chunk(self) -> int:
        """Tokens of a prompt in one order, at most."""
        return self._cache.chunk

    def keep(self, rows: slice | Tensor, tokens: Tensor) -> None:
        """On the leader: `Next` is to append `tokens` [N] to `rows` [N]. The device may still be choosing them."""
        self._latest[rows] = tokens

    def run(self, order: Prefill | Together | Decode | Next | Draft) -> Tensor:
        """On the leader: do it on all ranks.

        Returns:
            float32 logits: [T or 1, V] of a prompt's piece, [pieces, V] of several together, [rows, 1 or 2, V] of a
            step, [rows, V] of a draft.
        """
        self._tell(order)
        return self._do(order)

    def saved_bytes(self, length: int) -> int:
        """Bytes that `Save` takes for a row of `length` tokens."""
        return sum(cache.saved_bytes(length) for cache in self._caches)

    def has_room(self, size: int) -> bool:
        """Whether the leader's device can spare so many bytes, and some for the passes. Other ranks' are like it."""
        device = self.model.device
        return device.type == "cpu" or device.memory()[0] > size + _FOR_PASSES

    def remember(self, order: Save | Load) -> None:
        """On the leader: do it on all ranks."""
        self._tell(order)
        self._remember(order)

    def stop(self) -> None:
        """On the leader: let the other ranks return from `follow`."""
        self._tell(Stop())
        self._stepper.forget()

    def follow(self) -> None:
        """On the other ranks: do what the leader orders until it stops."""
        while not isinstance(order := decode(self.model.groups.hear()), Stop):
            if isinstance(order, Save | Load):
                self._remember(order)
            else:
                self._do(order)
        self._stepper.forget()

    @property
    def _caches(self) -> list[Cache]:
        return [self._cache] if self._drafts is None else [self._cache, self._drafts]

    def _remember(self, order: Save | Load) -> None:
        if isinstance(order, Load):
            for cache, saved in zip(self._caches, self._saved[order.name], strict=True):
                cache.load(order.row, saved)
            return
        for name in order.dropped:
            self._saved.pop(name, None)
        self._saved[order.name] = tuple(cache.save(order.row) for cache in self._caches)

    def _tell(self, order: Order) -> None:
        if self.model.groups.mp > 1:
            self.model.groups.tell(encode(order))

    def _do(self, order: Prefill | Together | Decode | Next | Draft) -> Tensor:
        if isinstance(order, Next):
            self.model.groups.share(self._latest)
            return self._stepper.follow(self._latest, order.rows)
        if isinstance(order, Prefill):
            return self._read((order,))
        if isinstance(order, Together):
            return self._read(order.pieces)
        if isinstance(order, Decode):
            return self._decode(order)
        return self._stepper.draft(order.following)

    def _read(self, pieces: Sequence[Prefill]) -> Tensor:
        """Pieces of rows that lie side by side, in one pass."""
        rows = slice(pieces[0].row, pieces[-1].row + 1)
        self._begin(self._cache, pieces)
        part = _view(self._cache, rows)
        streams = self.model.advance(part, [piece.tokens for piece in pieces])
        self._cache.lengths[rows] = part.lengths
        last = [streams[n, len(piece.tokens) - 1] for n, piece in enumerate(pieces)]
        if self._drafts is not None:
            self._read_drafts(self._drafts, pieces, streams)
            for piece, each in zip(pieces, last, strict=True):
                self._stepper.keep(piece.row, each)
        return self.model.read_out(streams[0] if pieces[0].every else torch.stack(last))

    def _read_drafts(self, drafts: Cache, pieces: Sequence[Prefill], streams: Tensor) -> None:
        """The MTP stage reads the piece too, all but the prompt's last position: what follows that is not known yet."""
        rows = slice(pieces[0].row, pieces[-1].row + 1)
        self._begin(drafts, pieces)
        following = [piece.tokens[1:] + (() if piece.following is None else (piece.following,)) for piece in pieces]
        if any(following):
            part = _view(drafts, rows)
            self.model.draft(part, streams, following)
            drafts.lengths[rows] = part.lengths

    def _begin(self, cache: Cache, pieces: Sequence[Prefill]) -> None:
        for piece in pieces:
            if piece.first:
                cache.free(piece.row)

    def _decode(self, order: Decode) -> Tensor:
        for row in order.rejected:
            self._cache.take_back(row)
        return self._stepper.advance(order.tokens)


def _view(cache: Cache, rows: slice) -> Cache:
    """Some rows: the same memory, their own counts of tokens."""
    return replace(cache, layers=tuple(layer.view(rows) for layer in cache.layers), lengths=cache.lengths[rows])
