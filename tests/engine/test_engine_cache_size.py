"""What a plan says a context costs is what the engine allocates for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flagrelease.bench.dimensions import dimensions
from flagrelease.engine.loaded import DEFAULT_CHUNK
from flagrelease.engine.numerics import choose_numerics
from flagrelease.engine.v4.cache import Cache
from flagrelease.model.v4.cache_size import CHUNK, CODED_FROM, key_forms, longest_context, sequence_bytes
from flagrelease.model.v4.rounding import NumericsName


@pytest.mark.parametrize("name", ["flash", "pro", "tiny"])
@pytest.mark.parametrize("context", [128, 16384, 32768, 1048576])
@pytest.mark.parametrize("numerics", ["native", "fp8", "int8", "bf16"])
def test_the_formula_gives_the_bytes_of_the_engines_caches(name: Any, context: int, numerics: NumericsName) -> None:
    config = dimensions(name)
    ratios = config.compress_ratios[: config.num_hidden_layers]
    chunk, policy = min(DEFAULT_CHUNK, context), choose_numerics(numerics, torch.bfloat16, config)
    cache = Cache.allocate(config, ratios, 1, context, chunk, policy, torch.device("meta"))
    assert CHUNK == DEFAULT_CHUNK
    assert sequence_bytes(config, numerics, context) == cache.nbytes
    assert context <= longest_context(config, numerics, cache.nbytes)
    assert sequence_bytes(config, numerics, longest_context(config, numerics, cache.nbytes)) <= cache.nbytes
    assert longest_context(config, numerics, 0) == 0


@pytest.mark.parametrize("numerics", ["native", "fp8", "bf16"])
def test_the_longest_context_is_the_longest(numerics: NumericsName) -> None:
    """A context whose keys become codes takes less than one a token shorter: no search by halves alone finds it."""
    config = dimensions("tiny")
    lengths = range(0, 3 * CODED_FROM, 64)
    sizes = [sequence_bytes(config, numerics, length) for length in lengths]
    for memory in range(0, max(sizes), max(sizes) // 37):
        longest = longest_context(config, numerics, memory)
        fitting = [length for length, size in zip(lengths, sizes, strict=True) if size <= memory]
        if fitting and fitting[-1] < lengths[-1]:
            assert fitting[-1] <= longest < fitting[-1] + 64


@pytest.mark.parametrize(
    ("numerics", "key", "index_key"),
    [("bf16", 2 * 512, 2 * 128), ("fp8", 448 + 2 * 64 + 7 + 9, 2 * 128), ("native", 448 + 2 * 64 + 7 + 9, 64 + 4 + 12)],
)
def test_a_token_takes_what_its_parts_take(numerics: NumericsName, key: int, index_key: int) -> None:
    """V4-Flash: 21 layers of ratio 4 with index keys, 20 of ratio 128; rows are filled up to 16 bytes."""
    config, half = dimensions("flash"), 524_288
    more = sequence_bytes(config, numerics, 2 * half) - sequence_bytes(config, numerics, half)
    assert more == half // 4 * 21 * (key + index_key) + half // 128 * 20 * 2 * 512


def test_keys_are_codes_only_where_they_are_the_same_values_and_memory_is_short() -> None:
    config = dimensions("tiny")
    coded = key_forms(config, "native", 4, CODED_FROM)
    assert (coded.codes, coded.index_codes) == (True, True)
    fp8 = key_forms(config, "fp8", 4, CODED_FROM)
    assert (fp8.codes, fp8.index_codes) == (True, False)
    narrow = config.model_copy(update={"qk_rope_head_dim": 32})
    for plain in (
        key_forms(config, "native", 4, CODED_FROM, 4),
        key_forms(config, "native", 128, CODED_FROM),
        key_forms(config, "native", 0, CODED_FROM),
        key_forms(config, "native", 4, CODED_FROM - 1),
        key_forms(config, "bf16", 4, CODED_FROM),
        key_forms(narrow, "fp8", 4, CODED_FROM),
    ):
        assert (plain.codes, plain.index_codes) == (False, False)
