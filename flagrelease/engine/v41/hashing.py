"""Which rows of an Engram table an n-gram reads: multipliers for its tokens, and a prime for each order and head.

Rules and constants: DeepSeek's inference/engram.py of V4.1. It draws the multipliers with numpy, whose generators may
change with a version, so those of the published model are shipped as numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np

from flagrelease.errors import CheckpointError
from flagrelease.model.v41.config import V41Config

# (words of the compressed vocabulary, layer) -> a multiplier for each lookback
_PUBLISHED = {
    (99_092, 1): (76632096046245, 4839876093313, 35959672319349, 73987337458391),
    (99_092, 14): (67716810739261, 51510806800915, 30921347202721, 82619226485591),
}
_SEED = 10007  # times the layer


def multipliers(config: V41Config, layer: int) -> tuple[int, ...]:
    """Odd numbers, one for each lookback from 0 on, whose products with any compressed id stay below 2^63."""
    words, lookbacks = config.engram_compressed_vocab_size, config.engram_max_ngram_size
    published = _PUBLISHED.get((words, layer), ())
    if len(published) == lookbacks:
        return published
    drawn = np.random.default_rng(_SEED * layer).integers(0, np.iinfo(np.int64).max // words // 2, lookbacks)
    return tuple(2 * int(number) + 1 for number in drawn)


def primes(config: V41Config) -> dict[int, list[list[int]]]:
    """By layer, for each order from 2 on and each head: the next prime from `engram_vocab_size` on that none has.

    Raises:
        CheckpointError: a layer's table has other rows than all remainders of its primes.
    """
    free = _primes(config.engram_vocab_size)
    found = {
        layer: [[next(free) for _ in range(config.engram_n_heads)] for _ in range(config.engram_max_ngram_size - 1)]
        for layer in config.engram_layer_ids
    }
    for (layer, orders), rows in zip(found.items(), config.engram_num_embeddings, strict=True):
        if sum(map(sum, orders)) != rows:
            raise CheckpointError(
                f"engram_num_embeddings of layer {layer} is {rows}; the primes from engram_vocab_size "
                f"{config.engram_vocab_size} on make {sum(map(sum, orders))} rows"
            )
    return found


def _primes(first: int) -> Iterator[int]:
    return (n for n in count(first) if n > 1 and all(n % d for d in range(2, int(n**0.5) + 1)))
