"""What a sequence leaves behind in each layer of DeepSeek-V4.1.

Every layer keeps the keys of its own window. Compressed keys and the index over them lie with the few layers that make
them, and others read them there. In every buffer the last slot of a row is a bin for padding.

Legend: B rows, R ring slots, C entries (context / ratio), HD head_dim, ID index_head_dim, N tokens that Engram can look
back to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.numerics import Numerics
from flagrelease.engine.row_caches import RowCaches
from flagrelease.engine.v4.cache import Pending
from flagrelease.errors import UsageError
from flagrelease.model.v41.cache_size import layer_slots
from flagrelease.model.v41.config import V41Config


@dataclass(frozen=True, slots=True)
class SharedEntries:
    """What a source of keys makes: `keys` [B, C + 1, HD], `index_keys` [B, C + 1, ID], entry j in slot j.

    `pending`: tokens of a pair that is not complete; None where every token makes an entry.
    """

    ratio: int
    keys: Tensor
    index_keys: Tensor
    pending: Pending | None

    def view(self, rows: slice) -> SharedEntries:
        """The same memory, some rows of it."""
        pending = None if self.pending is None else self.pending.view(rows)
        return SharedEntries(self.ratio, self.keys[rows], self.index_keys[rows], pending)


@dataclass(frozen=True, slots=True)
class LayerKeys:
    """One layer's buffers; what a layer of its kind does not have is None.

    Attributes:
        window: [B, R + 1, HD]: the key of position p in slot p mod R. The ring is the window and a chunk long.
        entries: of a layer that is a source of compressed keys.
        tokens: int64 [B, N + 1], of a layer with Engram: the id at position p in slot p mod N.
    """

    window: Tensor
    entries: SharedEntries | None
    tokens: Tensor | None

    def view(self, rows: slice) -> LayerKeys:
        """The same memory, some rows of it."""
        return LayerKeys(
            self.window[rows],
            None if self.entries is None else self.entries.view(rows),
            None if self.tokens is None else self.tokens[rows],
        )

    def tensors(self) -> list[Tensor]:
        """All buffers."""
        found = [self.window]
        if self.entries is not None:
            found += [self.entries.keys, self.entries.index_keys]
            if self.entries.pending is not None:
                found += [self.entries.pending.kv, self.entries.pending.score]
        return found if self.tokens is None else [*found, self.tokens]

    def remembered(self, row: int, length: int, drafts: int) -> Iterator[Tensor]:
        """What of them matters to a row of `length` tokens."""
        yield self.window[row]
        if self.entries is not None:
            made = length // self.entries.ratio
            yield self.entries.keys[row, :made]
            yield self.entries.index_keys[row, :made]
            if self.entries.pending is not None:
                yield self.entries.pending.kv[row]
                yield self.entries.pending.score[row]
        if self.tokens is not None:
            yield self.tokens[row]


@dataclass(frozen=True, slots=True)
class SharedCache(RowCaches[LayerKeys]):
    """The caches of DeepSeek-V4.1's layers."""

    @classmethod
    def allocate(
        cls, config: V41Config, rows: int, context: int, chunk: int, numerics: Numerics, device: torch.device
    ) -> SharedCache:
        """Empty caches of all layers.

        Raises:
            UsageError: the model does not go so far.
        """
        if not 0 < context <= config.max_position_embeddings:
            raise UsageError(f"a context of {context} tokens: the model allows 1 to {config.max_position_embeddings}")
        layers = (
            _layer(config, layer, rows, context, chunk, numerics, device) for layer in range(config.num_hidden_layers)
        )
        return cls(tuple(layers), [0] * rows, context, chunk)


def _layer(
    config: V41Config, layer: int, rows: int, context: int, chunk: int, numerics: Numerics, device: torch.device
) -> LayerKeys:  # fmt: skip
    size = layer_slots(config, layer, context, chunk)

    def keys(slots: int, width: int) -> Tensor:
        """Zeros, not garbage: a product of 0 and a NaN that lay in memory would still be NaN."""
        return torch.zeros((rows, slots, width), dtype=numerics.dtype, device=device)

    entries = tokens = None
    if size.entries:
        entries = SharedEntries(
            config.compress_ratios[layer],
            keys(size.entries, config.head_dim),
            keys(size.entries, config.index_head_dim),
            None if size.pending is None else Pending.empty(rows, size.pending, device),
        )
    if size.tokens:
        tokens = torch.zeros((rows, size.tokens), dtype=torch.int64, device=device)
    return LayerKeys(keys(size.window, config.head_dim), entries, tokens)
