"""How many bytes of caches a sequence takes, from the config alone: for plans, which load no engine.

Every rank holds the caches of all layers whole (V4's keys are one head that all query heads share), so the figures are
those of one card, whatever the number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from flagrelease.model.v4.config import ModelConfig

CHUNK = 512  # tokens that the engine appends to a sequence in one step, by default
_BF16, _FP32 = 2, 4
_INDEXED = 4  # the compression ratio whose layers have an indexer, and whose windows overlap


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Bytes of one sequence: `per_token` for each token of its context, and `fixed` whatever its length."""

    per_token: float
    fixed: int

    def tokens(self, memory: int) -> int:
        """The longest context of one sequence whose caches fit `memory` bytes; 0 if not even the fixed part does."""
        return max(0, int((memory - self.fixed) / self.per_token))


def cache_size(config: ModelConfig) -> CacheSize:
    """Caches of one sequence with BF16 keys and FP32 compressor states, MTP stages left out.

    A layer that compresses by r keeps one key of `head_dim` for every r tokens, and where r is 4 one key of
    `index_head_dim` for the indexer. Every layer keeps the keys of its sliding window, and a compressing one the tokens
    of windows that are not complete yet.
    """
    per_token, fixed = 0.0, 0
    for ratio in config.compress_ratios[: config.num_hidden_layers]:
        fixed += (config.sliding_window + CHUNK) * config.head_dim * _BF16  # the window, a chunk, a slot for padding
        if not ratio:
            continue
        per_token += config.head_dim * _BF16 / ratio
        fixed += _pending(ratio, config.head_dim)
        if ratio == _INDEXED:
            per_token += config.index_head_dim * _BF16 / ratio
            fixed += config.index_head_dim * _BF16 + _pending(ratio, config.index_head_dim)
    return CacheSize(per_token, fixed)


def _pending(ratio: int, width: int) -> int:
    """A compressor's memory: keys and scores of up to a window of tokens, twice that and twice as wide at overlaps."""
    slots, channels = (2 * ratio, 2 * width) if ratio == _INDEXED else (ratio, width)
    return 2 * (slots + 2) * channels * _FP32
