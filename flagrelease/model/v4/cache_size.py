"""What a sequence's caches hold and how many bytes that is, from the config alone.

The engine allocates by these numbers, and plans, which load no engine, say them. Every rank holds the caches of all
layers whole (V4's keys are one head that all query heads share), so the figures are those of one card, whatever the
number of ranks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from flagrelease.model.config import FamilyConfig
from flagrelease.model.v4.config import ModelConfig
from flagrelease.model.v4.rounding import FP4_INDEX_KEYS, FP8_KEYS, NumericsName

CHUNK = 512  # tokens that the engine appends to a sequence in one step, by default
LENGTHS = (4096, 131_072, 1_048_576)  # tokens of the sequences whose size is said
OVERLAP_RATIO = 4  # the compression ratio whose windows reach back over the previous window's tokens, for an indexer
CODED_FROM = 32_768  # tokens of a context whose keys are kept as codes
ROTATED = KEY_GROUP = 64  # columns of a key that stay BF16; columns of FP8 codes that share a scale
INDEX_GROUP = 32  # columns of FP4 codes that share a scale
_ALIGNMENT = 16  # bytes that kernels load at a time
_BF16, _FP32 = 2, 4


@dataclass(frozen=True, slots=True)
class KeyForms:
    """How caches store keys: as the codes that the numerics round them to, or as plain numbers.

    Attributes:
        codes: keys are rows of FP8 codes, their scales and the rotated columns in BF16.
        index_codes: index keys are rows of FP4 codes and their scales.
        key_bytes: of a key.
        index_key_bytes: of an index key.
    """

    codes: bool
    index_codes: bool
    key_bytes: int
    index_key_bytes: int


def key_row_bytes(width: int) -> int:
    """Bytes of a key of `width` columns as codes."""
    return _aligned(width + ROTATED + width // KEY_GROUP - 1)


def index_key_row_bytes(width: int) -> int:
    """Bytes of an index key of `width` columns as codes."""
    return _aligned(width // 2 + width // INDEX_GROUP)


def key_forms(config: ModelConfig, numerics: NumericsName, ratio: int, context: int, element: int = _BF16) -> KeyForms:
    """How the caches of a layer store keys under these numerics, whose plain numbers have `element` bytes.

    Codes take the place of BF16 numbers where they are the same values, the widths are as V4 has them (64 rotated
    columns, and groups that divide the others), and memory is short: in the layers that have an index, whose keys are
    97 % of a long context's, for contexts of `CODED_FROM` tokens and more. Decoding takes up to a fifth longer over
    codes where it reads few keys, as docs/engine-internals.md says.
    """
    HD, ID = config.head_dim, config.index_head_dim
    short = element == _BF16 and ratio == OVERLAP_RATIO and context >= CODED_FROM
    codes = short and numerics in FP8_KEYS and config.qk_rope_head_dim == ROTATED and HD % KEY_GROUP == 0
    index_codes = short and numerics in FP4_INDEX_KEYS and ID % INDEX_GROUP == 0
    return KeyForms(
        codes,
        index_codes,
        key_row_bytes(HD) if codes else HD * element,
        index_key_row_bytes(ID) if index_codes else ID * element,
    )


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


def sequence_bytes(config: ModelConfig, numerics: NumericsName, context: int, chunk: int = CHUNK) -> int:
    """Bytes of the caches of one sequence of at most `context` tokens, draft stages left out."""
    total = 0
    for ratio, layers in Counter(config.compress_ratios[: config.num_hidden_layers]).items():
        layer, forms = (
            layer_slots(config, ratio, context, min(chunk, context)),
            key_forms(config, numerics, ratio, context),
        )
        keys = layer.keys * forms.key_bytes + layer.index_keys * forms.index_key_bytes
        pending = sum(each.nbytes for each in (layer.pending, layer.index_pending) if each is not None)
        total += layers * (keys + pending)
    return total


def sequence_lengths(config: FamilyConfig) -> tuple[int, ...]:
    """Those of `LENGTHS` that the model goes to."""
    return tuple(length for length in LENGTHS if length <= config.max_position_embeddings)


def longest_context(config: ModelConfig, numerics: NumericsName, memory: int) -> int:
    """Tokens of the longest sequence whose caches fit `memory` bytes, at most what the model allows; 0 if none does."""
    low, high = 0, config.max_position_embeddings
    if high >= CODED_FROM:  # from there on a token more takes more again
        fits = sequence_bytes(config, numerics, CODED_FROM) <= memory
        low, high = (CODED_FROM, high) if fits else (0, CODED_FROM - 1)
    while low < high:
        middle = (low + high + 1) // 2
        if sequence_bytes(config, numerics, middle) <= memory:
            low = middle
        else:
            high = middle - 1
    return low


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _pending(ratio: int, width: int, drafts: int) -> PendingShape:
    """Beside tokens and drafts a slot that stays empty, and a bin. Overlapping windows have two sets of channels."""
    return PendingShape(pending_slots(ratio) + drafts + 2, 2 * width if ratio == OVERLAP_RATIO else width)
