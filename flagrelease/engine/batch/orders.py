"""What the leading rank orders the others to do, and how an order travels: its name and its fields as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class Prefill:
    """Read a piece of a prompt for one row.

    Attributes:
        row: which.
        tokens: at most a chunk of them.
        first: the row is a new sequence's.
        following: the prompt's token after the piece; None at its end.
        every: logits after every token are wanted.
    """

    row: int
    tokens: tuple[int, ...]
    first: bool
    following: int | None
    every: bool


@dataclass(frozen=True, slots=True)
class Together:
    """Read pieces of several rows in one pass. The logits are those after the last token of each.

    Attributes:
        pieces: of rows that lie side by side, in their order.
    """

    pieces: tuple[Prefill, ...]


@dataclass(frozen=True, slots=True)
class Decode:
    """Run one step of all sequences whose prompts are read.

    Attributes:
        tokens: for each row none, or its last one, or that and drafts of the next ones.
        rejected: rows with drafts of the step before that were wrong, once for each of these; their caches forget them
            first.
    """

    tokens: tuple[tuple[int, ...], ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Next:
    """Run one step of one token a row: the one that was kept for the row last (`Runner.keep`), on the device.

    Attributes:
        rows: those that get theirs.
    """

    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """Guess the next tokens.

    Attributes:
        following: for each row none, or what followed the tokens of its last order, rejected drafts not counted.
        likeliest: take the likeliest tokens, so that nobody has to choose.
    """

    following: tuple[tuple[int, ...], ...]
    likeliest: bool = False


@dataclass(frozen=True, slots=True)
class Save:
    """Keep a copy of all that a row remembers, under a name, without those of some other names."""

    row: int
    name: int
    dropped: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """Let a row, which a new sequence gets, remember what was kept under a name."""

    row: int
    name: int


@dataclass(frozen=True, slots=True)
class Stop:
    """No order comes any more."""


Order = Prefill | Together | Decode | Next | Draft | Save | Load | Stop
_KINDS: dict[bytes, TypeAdapter[Any]] = {kind.__name__.encode(): TypeAdapter(kind) for kind in get_args(Order)}


def encode(order: Order) -> bytes:
    """The order as ranks send it: its name, a space, its fields as JSON."""
    name = type(order).__name__.encode()
    return name + b" " + _KINDS[name].dump_json(order)


def decode(message: bytes) -> Order:
    """The order that `encode` made a message of.

    Raises:
        ValueError: the message is no order, or a field has another type than the order's.
    """
    name, _, fields = message.partition(b" ")
    if name not in _KINDS:
        raise ValueError(f"{name[:40]!r} is no order")
    order: Order = _KINDS[name].validate_json(fields, strict=True)
    return order
