"""What a sequence leaves behind: window keys, compressed entries, and the tokens of windows that are not complete yet.

One row is one sequence. In every buffer the last slot of a row is a bin: padding is written to slot -1, so that a batch
of sequences with different lengths needs no data-dependent shapes.

Legend: B rows, C compressed entries a row can hold (context / ratio; 0 in sliding layers), R ring slots, HD head_dim,
ID indexer head_dim, P pending slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.numerics import Numerics
from flagrelease.errors import UsageError
from flagrelease.model.v4.cache_size import OVERLAP_RATIO, PendingShape, layer_slots, pending_slots, ring_slots
from flagrelease.model.v4.config import ModelConfig

__all__ = ["OVERLAP_RATIO", "Cache", "LayerCache", "Pending", "SavedRow", "pending_slots", "ring_slots"]


@dataclass(frozen=True, slots=True)
class Pending:
    """A compressor's memory, FP32: token at position p in slot p mod N.

    N is P and a slot for each token that may be taken back, so that those leave in place what is needed after that.
    `kv` and `score` are [B, N + 2, channels]. Slot N is never written: kv 0 and score -inf, the window before the
    first. Slot N + 1 is the bin. Scores have `ape` added.
    """

    kv: Tensor
    score: Tensor

    @classmethod
    def empty(cls, rows: int, shape: PendingShape, device: torch.device) -> Pending:
        """Memory of `rows` sequences without tokens."""
        size = (rows, shape.slots, shape.channels)
        return cls(
            torch.zeros(size, dtype=torch.float32, device=device),
            torch.full(size, -torch.inf, dtype=torch.float32, device=device),
        )

    @property
    def size(self) -> int:
        """N: tokens that it holds."""
        return self.kv.shape[1] - 2

    def view(self, rows: slice) -> Pending:
        """The same memory, some rows of it."""
        return Pending(self.kv[rows], self.score[rows])


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's buffers; what a layer of its kind does not have is None.

    `kv` is [B, C + R + 1, HD]: compressed entries first (entry w in slot w), then the ring (position p in slot
    C + p mod R), then the bin. The ring is the window and a chunk long, so that a chunk of new tokens can be written
    before it is attended to and no key still visible is overwritten. `index_k` is [B, C + 1, ID].

    Where the numerics round keys to codes anyway and a long context is short of memory (`key_forms`), the last
    dimension is that of uint8 rows that hold these codes, as `pack_keys` and `pack_index_keys` make them: the same
    values in half and a third of the bytes.
    """

    kv: Tensor
    pending: Pending | None
    index_k: Tensor | None
    index_pending: Pending | None

    def view(self, rows: slice) -> LayerCache:
        """The same memory, some rows of it."""
        return LayerCache(
            self.kv[rows],
            None if self.pending is None else self.pending.view(rows),
            None if self.index_k is None else self.index_k[rows],
            None if self.index_pending is None else self.index_pending.view(rows),
        )


@dataclass(frozen=True, slots=True)
class SavedRow:
    """A copy of what a row of `length` tokens remembers, in the order of layers and their buffers."""

    length: int
    parts: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Cache:
    """The caches of all layers for a fixed number of rows.

    Attributes:
        layers: in their order.
        lengths: tokens that each row has seen.
        context: the most that it can.
        chunk: tokens that a step appends to a row at most.
        drafts: those of them that may be taken back.
    """

    layers: tuple[LayerCache, ...]
    lengths: list[int]
    context: int
    chunk: int
    drafts: int = 0

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        ratios: tuple[int, ...],
        rows: int,
        context: int,
        chunk: int,
        numerics: Numerics,
        device: torch.device,
        drafts: int = 0,
    ) -> Cache:
        """Empty caches for layers with these compression ratios."""
        if not 0 < context <= config.max_position_embeddings:
            raise UsageError(f"a context of {context} tokens: the model allows 1 to {config.max_position_embeddings}")
        layers = tuple(_layer(config, ratio, rows, context, chunk, drafts, numerics, device) for ratio in ratios)
        return cls(layers, [0] * rows, context, chunk, drafts)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(tensor.numel() * tensor.element_size() for layer in self.layers for tensor in _tensors(layer))

    def view(self, rows: int | slice) -> Cache:
        """One row, or some that lie side by side: the same memory, their own counts of tokens."""
        if isinstance(rows, int):
            rows = slice(rows, rows + 1)
        layers = tuple(layer.view(rows) for layer in self.layers)
        return Cache(layers, self.lengths[rows], self.context, self.chunk, self.drafts)

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
        parts = (part for layer in self.layers for part in _remembered(self, layer, row, length))
        return SavedRow(length, tuple(part.clone() for part in parts))

    def load(self, row: int, saved: SavedRow) -> None:
        """Let a row remember what `save` has copied, here or in a cache of the same form."""
        parts = (part for layer in self.layers for part in _remembered(self, layer, row, saved.length))
        for part, copy in zip(parts, saved.parts, strict=True):
            part.copy_(copy)
        self.lengths[row] = saved.length

    def saved_bytes(self, length: int) -> int:
        """Bytes of a copy of a row of `length` tokens."""
        parts = (part for layer in self.layers for part in _remembered(self, layer, 0, length))
        return sum(part.numel() * part.element_size() for part in parts)

    def free(self, row: int) -> None:
        """Let another sequence have the row. Its old contents are never visible to the new one."""
        self.lengths[row] = 0


def _layer(
    config: ModelConfig, ratio: int, rows: int, context: int, chunk: int, drafts: int, numerics: Numerics,
    device: torch.device,
) -> LayerCache:  # fmt: skip
    size, forms = layer_slots(config, ratio, context, chunk, drafts), numerics.key_forms(config, ratio, context)
    kv = _keys(rows, size.keys, forms.key_bytes, torch.uint8 if forms.codes else numerics.dtype, device)
    index_k = None
    if size.index_keys:
        dtype = torch.uint8 if forms.index_codes else numerics.dtype
        index_k = _keys(rows, size.index_keys, forms.index_key_bytes, dtype, device)
    pending, index_pending = (
        None if shape is None else Pending.empty(rows, shape, device) for shape in (size.pending, size.index_pending)
    )
    return LayerCache(kv, pending, index_k, index_pending)


def _keys(rows: int, slots: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Keys of `size` bytes. Zeros, not garbage: a product of 0 and a NaN that lay in memory would still be NaN."""
    return torch.zeros((rows, slots, size // dtype.itemsize), dtype=dtype, device=device)


def _remembered(cache: Cache, layer: LayerCache, row: int, length: int) -> Iterator[Tensor]:
    """What of a layer's buffers matters to a row of `length` tokens: views."""
    entries = 0
    if layer.pending is not None:
        ratio = layer.pending.size - cache.drafts if layer.index_k is None else OVERLAP_RATIO
        entries = cache.context // ratio
        yield layer.kv[row, : length // ratio]
        if layer.index_k is not None:
            yield layer.index_k[row, : length // ratio]
    yield layer.kv[row, entries:]
    for pending in (layer.pending, layer.index_pending):
        if pending is not None:
            yield pending.kv[row]
            yield pending.score[row]


def _tensors(layer: LayerCache) -> list[Tensor]:
    pendings = [p for p in (layer.pending, layer.index_pending) if p is not None]
    tensors = [layer.kv, *(t for p in pendings for t in (p.kv, p.score))]
    return tensors if layer.index_k is None else [*tensors, layer.index_k]
