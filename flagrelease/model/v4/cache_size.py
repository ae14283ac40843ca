"""What a sequence's caches hold and how many bytes that is, from the config alone.

The engine allocates by these numbers, and plans, which load no engine, say them. Every rank holds the caches of all
layers whole (V4's keys are one head that all query heads share), so the figures are those of one card, whatever the
number of ranks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from flagrelease.model.v4.config import ModelConfig

CHUNK = 512  # tokens that the engine appends to a sequence in one step, by default
LENGTHS = (4096, 131_072, 1_048_576)  # tokens of the sequences whose size is said
OVERLAP_RATIO = 4  # the compression ratio whose windows reach back over the previous window's tokens, for an indexer
_BF16, _FP32 = 2, 4


@dataclass(frozen=True, slots=True)
class PendingShape:
    """A compressor's memory: FP32 keys and scores [slots, channels] each."""

    slots: int
    channels: int

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return 2 * self.slots * self.channels * _FP32


@dataclass(frozen=True, slots=True)
class LayerSlots:
    """What one layer keeps of one sequence.

    Attributes:
        entries: compressed entries that there is room for; 0 in sliding layers.
        keys: slots of keys: the entries, the ring, and a bin for padding.
        index_keys: slots of the indexer's keys, a bin among them; 0 without an indexer.
        pending: the compressor's memory, if there is one.
        index_pending: that of the indexer's compressor.
    """

    entries: int
    keys: int
    index_keys: int
    pending: PendingShape | None
    index_pending: PendingShape | None


def pending_slots(ratio: int) -> int:
    """Tokens that a compressor must remember: up to one incomplete window, and the one before it if windows overlap."""
    return 2 * ratio if ratio == OVERLAP_RATIO else ratio


def ring_slots(window: int, chunk: int) -> int:
    """Slots that hold the keys visible to any token of a chunk."""
    return window - 1 + chunk


def layer_slots(config: ModelConfig, ratio: int, context: int, chunk: int, drafts: int = 0) -> LayerSlots:
    """Of a layer that compresses by `ratio` (0: not at all), for `context` tokens appended by `chunk` at most.

    `drafts` of these may be taken back: compressors have spare slots for them.
    """
    entries = context // ratio if ratio else 0
    indexed = ratio == OVERLAP_RATIO
    return LayerSlots(
        entries,
        entries + ring_slots(config.sliding_window, chunk) + 1,
        entries + 1 if indexed else 0,
        _pending(ratio, config.head_dim, drafts) if ratio else None,
        _pending(ratio, config.index_head_dim, drafts) if indexed else None,
    )


def sequence_bytes(config: ModelConfig, context: int, chunk: int = CHUNK) -> int:
    """Bytes of the caches of one sequence of at most `context` tokens, draft stages left out. Keys are BF16."""
    total = 0
    for ratio, layers in Counter(config.compress_ratios[: config.num_hidden_layers]).items():
        layer = layer_slots(config, ratio, context, min(chunk, context))
        keys = layer.keys * config.head_dim * _BF16 + layer.index_keys * config.index_head_dim * _BF16
        pending = sum(each.nbytes for each in (layer.pending, layer.index_pending) if each is not None)
        total += layers * (keys + pending)
    return total


def sequence_lengths(config: ModelConfig) -> tuple[int, ...]:
    """Those of `LENGTHS` that the model goes to."""
    return tuple(length for length in LENGTHS if length <= config.max_position_embeddings)


def longest_context(config: ModelConfig, memory: int) -> int:
    """Tokens of the longest sequence whose caches fit `memory` bytes, at most what the model allows; 0 if none does."""
    low, high = 0, config.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        if sequence_bytes(config, middle) <= memory:
            low = middle
        else:
            high = middle - 1
    return low


def _pending(ratio: int, width: int, drafts: int) -> PendingShape:
    """Beside tokens and drafts a slot that stays empty, and a bin. Overlapping windows have two sets of channels."""
    return PendingShape(pending_slots(ratio) + drafts + 2, 2 * width if ratio == OVERLAP_RATIO else width)
