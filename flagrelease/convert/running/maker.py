"""`Maker`: one product of a weight, made while its codes stream by in chunks of whole rows."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from flagrelease.convert.codecs.decoder import U8
from flagrelease.convert.planning.jobs import Piece, Product
from flagrelease.convert.planning.parts import Role
from flagrelease.records.manifest import ElementCounts, LossRecord


class Sink(Protocol):
    """Where chunks go."""

    def buffer(self, nbytes: int) -> U8:
        """Wait for memory; a byte array of this length. It is given back by `put` or `drop`."""
        ...

    def buffer_for(self, nbytes: int, row: int, row_bytes: int, pieces: tuple[Piece, ...]) -> U8:
        """Wait for memory for whole rows from `row` on that will go to `pieces`."""
        ...

    def put(self, data: U8, row: int, row_bytes: int, pieces: tuple[Piece, ...]) -> None:
        """Send a filled buffer, whole rows from `row` on, to the files of `pieces`."""
        ...

    def drop(self, data: U8) -> None:
        """Give a buffer back."""
        ...


class Maker(Protocol):
    """What becomes of one weight under one action.

    Attributes:
        product: the action and where its parts go.
        width: bytes made of one stored byte.
        copies: whether the weight's bytes are the source's; then `emit` is not called.
    """

    product: Product
    width: int
    copies: bool

    def emit(self, codes: U8, row: int, sink: Sink) -> None:
        """Make the rows from `row` on, of stored bytes [R, C], and send them."""

    def others(self) -> dict[Role, NDArray[Any]]:
        """The parts beside the weight, each a matrix, when all rows have been seen."""

    def digest(self) -> str | None:
        """BLAKE3 of what was made of the weight; None if it is copied."""

    def counts(self, elements: int) -> ElementCounts:
        """What happened to the weight's elements."""

    def loss(self) -> LossRecord | None:
        """What scales by row cost; None for other actions, and where nothing was lost."""
