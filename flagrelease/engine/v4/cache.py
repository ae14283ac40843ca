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
from flagrelease.engine.row_caches import RowCaches, SavedRow
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

    `kv` is [B, C + R + 1, HD], C is `entries`: compressed entries first (entry w in slot w), then the ring (position p
    in slot C + p mod R), then the bin. The ring is the window and a chunk long, so that a chunk of new tokens can be
    written before it is attended to and no key still visible is overwritten. `index_k` is [B, C + 1, ID].

    Where the numerics round keys to codes anyway and a long context is short of memory (`key_forms`), the last
    dimension is that of uint8 rows that hold these codes, as `pack_keys` and `pack_index_keys` make them: the same
    values in half and a third of the bytes.
    """

    kv: Tensor
    pending: Pending | None
    index_k: Tensor | None
    index_pending: Pending | None
    entries: int = 0

    def view(self, rows: slice) -> LayerCache:
        """The same memory, some rows of it."""
        return LayerCache(
            self.kv[rows],
            None if self.pending is None else self.pending.view(rows),
            None if self.index_k is None else self.index_k[rows],
            None if self.index_pending is None else self.index_pending.view(rows),
            self.entries,
        )

    def tensors(self) -> list[Tensor]:
        """All buffers."""
        pendings = [p for p in (self.pending, self.index_pending) if p is not None]
        tensors = [self.kv, *(t for p in pendings for t in (p.kv, p.score))]
        return tensors if self.index_k is None else [*tensors, self.index_k]

    def remembered(self, row: int, length: int, drafts: int) -> Iterator[Tensor]:
        """What of them matters to a row of `length` tokens; `drafts` of its tokens may be taken back."""
        if self.pending is not None:
            ratio = self.pending.size - drafts if self.index_k is None else OVERLAP_RATIO
            yield self.kv[row, : length // ratio]
            if self.index_k is not None:
                yield self.index_k[row, : length // ratio]
        yield self.kv[row, self.entries :]
        for pending in (self.pending, self.index_pending):
            if pending is not None:
                yield pending.kv[row]
                yield pending.score[row]


@dataclass(frozen=True, slots=True)
class Cache(RowCaches[LayerCache]):
    """The caches of DeepSeek-V4's layers."""

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
    return LayerCache(kv, pending, index_k, index_pending, size.entries)


def _keys(rows: int, slots: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Keys of `size` bytes. Zeros, not garbage: a product of 0 and a NaN that lay in memory would still be NaN."""
    return torch.zeros((rows, slots, size // dtype.itemsize), dtype=dtype, device=device)
