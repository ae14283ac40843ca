"""What a plan says a context costs is what the engine allocates for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flagrelease.bench.dimensions import dimensions
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.model import DEFAULT_CHUNK
from flagrelease.model.v4.cache_size import CHUNK, longest_context, sequence_bytes


@pytest.mark.parametrize("name", ["flash", "pro", "tiny"])
@pytest.mark.parametrize("context", [128, 16384, 1048576])
def test_the_formula_gives_the_bytes_of_the_engines_caches(name: Any, context: int) -> None:
    config = dimensions(name)
    ratios = config.compress_ratios[: config.num_hidden_layers]
    chunk = min(DEFAULT_CHUNK, context)
    cache = Cache.allocate(config, ratios, 1, context, chunk, torch.bfloat16, torch.device("meta"))
    assert CHUNK == DEFAULT_CHUNK
    assert sequence_bytes(config, context) == cache.nbytes
    assert context <= longest_context(config, cache.nbytes) < context + 4  # an entry is of four tokens, at least
    assert longest_context(config, cache.nbytes - 1) < context
    assert longest_context(config, 0) == 0


def test_a_token_takes_what_the_numbers_of_the_model_cards_say() -> None:
    # V4-Flash: 21 layers of ratio 4 with keys of 512 and index keys of 128, 20 of ratio 128; BF16
    config, half = dimensions("flash"), 524_288
    per_token = 21 * (512 + 128) * 2 // 4 + 20 * 512 * 2 // 128
    assert sequence_bytes(config, 2 * half) - sequence_bytes(config, half) == half * per_token == half * 6880
