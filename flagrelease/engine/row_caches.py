"""What sequences leave behind, one row for each: how rows grow, are taken back, copied and given to others.

What a layer keeps is its family's business. Of a layer's memory it is asked here which bytes it has, which of them a
row of so many tokens needs, and what a few rows of it are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from torch import Tensor
from typing_extensions import Self

from flagrelease.errors import UsageError


class LayerMemory(Protocol):
    """One layer's buffers, a row for each sequence. In each the last slot of a row is a bin for padding."""

    def view(self, rows: slice) -> Self:
        """The same memory, some rows of it."""

    def tensors(self) -> list[Tensor]:
        """All buffers."""

    def remembered(self, row: int, length: int, drafts: int) -> Iterator[Tensor]:
        """What of them matters to a row of `length` tokens, as views; `drafts` as in `RowCaches`."""


L = TypeVar("L", bound=LayerMemory)


@dataclass(frozen=True, slots=True)
class SavedRow:
    """A copy of what a row of `length` tokens remembers, in the order of layers and their buffers."""

    length: int
    parts: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class RowCaches(Generic[L]):
    """The caches of all layers for a fixed number of rows.

    Attributes:
        layers: in their order.
        lengths: tokens that each row has seen.
        context: the most that it can.
        chunk: tokens that a step appends to a row at most.
        drafts: those of them that may be taken back.
    """

    layers: tuple[L, ...]
    lengths: list[int]
    context: int
    chunk: int
    drafts: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(tensor.numel() * tensor.element_size() for layer in self.layers for tensor in layer.tensors())

    def view(self, rows: int | slice) -> Self:
        """One row, or some that lie side by side: the same memory, their own counts of tokens."""
        if isinstance(rows, int):
            rows = slice(rows, rows + 1)
        layers = tuple(layer.view(rows) for layer in self.layers)
        return replace(self, layers=layers, lengths=self.lengths[rows])

    def check_room(self, row: int, tokens: int) -> None:
        """Refuse to append `tokens` to `row` beyond the context.

        Raises:
            UsageError: says the length that was wanted and the one there is.
        """
        wanted = self.lengths[row] + tokens
        if wanted > self.context:
            raise UsageError(f"sequence {row} would have {wanted} tokens; its cache has a context of {self.context}")

    def take_back(self, row: int, count: int = 1) -> None:
        """Forget the last `count` tokens of a row, which one step appended: drafts that were not accepted.

        The count is enough, since rings have spare slots. The keys of rejected tokens lie where no visible key does,
        for the ring is a chunk longer than the window; what compressors remember of them lies where nothing does that a
        window of earlier tokens needs (see `Pending`); the entry of a window that they completed is not visible before
        it is complete again. What they wrote is written anew by the tokens that take their places.
        """
        assert 0 <= count <= min(self.drafts, self.lengths[row]), "only drafts can be taken back"
        self.lengths[row] -= count

    def save(self, row: int) -> SavedRow:
        """A copy of all that a row remembers. Where things lie depends on positions only, on no row."""
        length = self.lengths[row]
        parts = (part for layer in self.layers for part in layer.remembered(row, length, self.drafts))
        return SavedRow(length, tuple(part.clone() for part in parts))

    def load(self, row: int, saved: SavedRow) -> None:
        """Let a row remember what `save` has copied, here or in a cache of the same form."""
        parts = (part for layer in self.layers for part in layer.remembered(row, saved.length, self.drafts))
        for part, copy in zip(parts, saved.parts, strict=True):
            part.copy_(copy)
        self.lengths[row] = saved.length

    def saved_bytes(self, length: int) -> int:
        """Bytes of a copy of a row of `length` tokens."""
        parts = (part for layer in self.layers for part in layer.remembered(0, length, self.drafts))
        return sum(part.numel() * part.element_size() for part in parts)

    def free(self, row: int) -> None:
        """Let another sequence have the row. Its old contents are never visible to the new one."""
        self.lengths[row] = 0
