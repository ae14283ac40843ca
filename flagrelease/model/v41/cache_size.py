"""What a sequence's caches hold in DeepSeek-V4.1 and how many bytes that is, from the config alone.

The engine allocates by these numbers, and plans, which load no engine, say them. Every rank holds the caches of all
layers whole, as with V4.
"""

from __future__ import annotations

from dataclasses import dataclass

from flagrelease.model.v4.cache_size import CHUNK, PendingShape, ring_slots
from flagrelease.model.v41.config import V41Config

_BF16, _TOKEN = 2, 8


@dataclass(frozen=True, slots=True)
class LayerSlots:
    """What one layer keeps of one sequence, in slots, each buffer with a bin for padding; 0: it has no such buffer.

    Attributes:
        window: keys of its own, a ring of the window and a chunk.
        entries: compressed keys, and as many index keys, of a layer that makes them.
        pending: what the compressor remembers of a pair of tokens that is not complete.
        tokens: ids that Engram looks back to, for every token of a chunk.
    """

    window: int
    entries: int
    pending: PendingShape | None
    tokens: int


def layer_slots(config: V41Config, layer: int, context: int, chunk: int) -> LayerSlots:
    """Of one layer, for `context` tokens that are appended by `chunk` at most."""
    ratio = config.compress_ratios[layer]
    is_source = layer in config.kv_source_layer_ids
    return LayerSlots(
        ring_slots(config.sliding_window, chunk) + 1,
        context // ratio + 1 if is_source else 0,
        PendingShape(ratio + 2, config.head_dim) if is_source and ratio > 1 else None,
        config.engram_max_ngram_size - 1 + chunk + 1 if layer in config.engram_layer_ids else 0,
    )


def sequence_bytes(config: V41Config, context: int, chunk: int = CHUNK) -> int:
    """Bytes of the caches of one sequence of at most `context` tokens, draft stages left out."""
    total = 0
    for layer in range(config.num_hidden_layers):
        size = layer_slots(config, layer, context, min(chunk, context))
        keys = size.window * config.head_dim + size.entries * (config.head_dim + config.index_head_dim)
        total += keys * _BF16 + size.tokens * _TOKEN + (0 if size.pending is None else size.pending.nbytes)
    return total


def longest_context(config: V41Config, memory: int) -> int:
    """Tokens of the longest sequence whose caches fit `memory` bytes, at most what the model allows; 0 if none does."""
    low, high = 0, config.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        if sequence_bytes(config, middle) <= memory:
            low = middle
        else:
            high = middle - 1
    return low
