"""The model and its caches as all ranks run them: the leader orders, the others do the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

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
from flagrelease.engine.batch.reader import open_reader
from flagrelease.engine.decode.stepper import choose_stepper
from flagrelease.engine.loaded import AnyModel
from flagrelease.engine.row_caches import RowCaches, SavedRow
from flagrelease.engine.v4.drafting import Drafting, open_drafting
from flagrelease.engine.v4.dspark_head import Choose, Drafts
from flagrelease.errors import UsageError

_FOR_PASSES = 1 << 30  # bytes that are not given to what is kept


class Runner:
    """A model with `rows` sequences of at most `context` tokens."""

    def __init__(
        self, model: AnyModel, rows: int, context: int, *, speculate: bool = False, most: int | None = None
    ) -> None:
        """Allocate the caches, on every rank.

        Args:
            model: on this rank.
            rows: sequences at once.
            context: tokens that each may have.
            speculate: let the model's draft stages guess tokens; allocates their caches too.
            most: guesses for a row in a step; None: as many as the stages make.

        Raises:
            UsageError: the ranks were started with different options; a step appends fewer tokens than one and its
                drafts; the model was loaded without draft stages, or its stages make fewer drafts than `most`.
            ResourceError: the device has no room.
        """
        options = {"--batch": rows, "--context": context, "--speculate": (speculate, most)}
        require_same_options(model.groups.control, options)
        self.model, self.rows, self.context, self.speculate = model, rows, context, speculate
        self._cache: RowCaches[Any] = model.new_cache(rows, context)
        self._drafting = open_drafting(model, rows, context, most) if speculate else None
        if self._drafting is not None and self._cache.chunk <= self._drafting.most:
            most = self._drafting.most + 1
            raise UsageError(f"speculation appends {most} tokens in a step: chunk and context must be at least {most}")
        self._stepper = choose_stepper(model, self._cache, self._drafting)
        self._reader = open_reader(model, self._cache)
        self._saved: dict[int, tuple[SavedRow, ...]] = {}
        self._latest = torch.zeros(rows, dtype=torch.int64, device=model.head.device)

    @property
    def chunk(self) -> int:
        """Tokens of a prompt in one order, at most."""
        return self._cache.chunk

    def keep(self, rows: slice | Tensor, tokens: Tensor) -> None:
        """On the leader: `Next` is to append `tokens` [N] to `rows` [N]. The device may still be choosing them."""
        self._latest[rows] = tokens

    def run(self, order: Prefill | Together | Decode | Next) -> Tensor:
        """On the leader: do it on all ranks.

        Returns:
            float32 logits: [T or 1, V] of a prompt's piece, [pieces, V] of several together, [rows, S, V] of a step.
        """
        self._tell(order)
        return self._do(order)

    def draft(self, order: Draft, choose: Choose) -> Drafts:
        """On the leader: let the stages guess on all ranks. `choose` takes each token from logits [rows, V].

        It is not called where the order is for the likeliest ones.
        """
        self._tell(order)
        return self._stepper.draft(order.following, None if order.likeliest else choose)

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
        self._forget()

    def follow(self) -> None:
        """On the other ranks: do what the leader orders until it stops."""
        while not isinstance(order := decode(self.model.groups.hear()), Stop):
            if isinstance(order, Save | Load):
                self._remember(order)
            elif isinstance(order, Draft):
                self._stepper.draft(order.following, None if order.likeliest else _leave)
            else:
                self._do(order)
        self._forget()

    def _forget(self) -> None:
        self._stepper.forget()
        self._reader.forget()

    @property
    def _caches(self) -> list[RowCaches[Any]]:
        return [self._cache] if self._drafting is None else [self._cache, self._drafting.cache]

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

    def _do(self, order: Prefill | Together | Decode | Next) -> Tensor:
        if isinstance(order, Next):
            self.model.groups.share(self._latest)
            return self._stepper.follow(self._latest, order.rows)
        if isinstance(order, Prefill):
            return self._read((order,))
        if isinstance(order, Together):
            return self._read(order.pieces)
        return self._decode(order)

    def _read(self, pieces: Sequence[Prefill]) -> Tensor:
        """Pieces of rows that lie side by side, in one pass."""
        self._begin(self._cache, pieces)
        streams, features = self._reader.read(pieces[0].row, [piece.tokens for piece in pieces])
        last = [(n, len(piece.tokens) - 1) for n, piece in enumerate(pieces)]
        if self._drafting is not None:
            self._read_drafts(self._drafting, pieces, features)
            for piece, place in zip(pieces, last, strict=True):
                self._stepper.keep(piece.row, features[place])
        return self.model.read_out(streams[0] if pieces[0].every else torch.stack([streams[place] for place in last]))

    def _read_drafts(self, drafting: Drafting, pieces: Sequence[Prefill], features: Tensor) -> None:
        """The stages read the piece too, all but the prompt's last position: what follows that is not known yet."""
        self._begin(drafting.cache, pieces)
        following = [piece.tokens[1:] + (() if piece.following is None else (piece.following,)) for piece in pieces]
        if any(following):
            drafting.read(slice(pieces[0].row, pieces[-1].row + 1), features, following)

    def _begin(self, cache: RowCaches[Any], pieces: Sequence[Prefill]) -> None:
        for piece in pieces:
            if piece.first:
                cache.free(piece.row)

    def _decode(self, order: Decode) -> Tensor:
        for row, count in Counter(order.rejected).items():
            self._stepper.take_back(row, count)
        return self._stepper.advance(order.tokens)


def _leave(place: int, logits: Tensor) -> Tensor:
    raise AssertionError(f"draft {place} was to be chosen on a rank that does not lead")
