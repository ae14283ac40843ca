"""What a plan says a context costs is what the engine allocates for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flagrelease.bench.dimensions import dimensions
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.model import DEFAULT_CHUNK
from flagrelease.model.v4.cache_size import CHUNK, cache_size


@pytest.mark.parametrize("name", ["flash", "pro", "tiny"])
@pytest.mark.parametrize("context", [128, 16384, 1048576])
def test_the_formula_gives_the_bytes_of_the_engines_caches(name: Any, context: int) -> None:
    config = dimensions(name)
    ratios = config.compress_ratios[: config.num_hidden_layers]
    cache = Cache.allocate(config, ratios, 1, context, DEFAULT_CHUNK, torch.bfloat16, torch.device("meta"))
    size = cache_size(config)
    assert CHUNK == DEFAULT_CHUNK
    assert size.fixed + context * size.per_token == cache.nbytes
    assert size.tokens(cache.nbytes) == context
    assert size.tokens(size.fixed - 1) == 0
