"""Decoding, chunks and batches give what one prefill of the whole sequence gives."""

from __future__ import annotations

import pytest
import torch
from engine_checkpoint import random_tokens

from flagrelease.engine.v4.model import Model
from flagrelease.errors import UsageError

# float32; a different order of additions only.
LIMIT = 1e-3


def test_decode_equals_prefill_at_every_position(float32_model: Model) -> None:
    tokens = random_tokens(300)
    expected = float32_model.logits(tokens)
    cache = float32_model.new_cache(rows=1, context=300)
    decoded = torch.cat([float32_model.decode(cache, [token]) for token in tokens])
    assert (decoded - expected).abs().max() <= LIMIT


@pytest.mark.parametrize("chunk", [1, 3, 4, 31, 127, 128, 129, 300])
def test_chunked_prefill_equals_whole(float32_model: Model, chunk: int) -> None:
    tokens = random_tokens(300)
    float32_model.chunk = 512
    whole = float32_model.logits(tokens)
    float32_model.chunk = chunk
    assert (float32_model.logits(tokens) - whole).abs().max() <= LIMIT


@pytest.mark.parametrize("first", [1, 5, 126, 128, 200])
def test_decode_after_prefill(float32_model: Model, first: int) -> None:
    tokens = random_tokens(first + 9)
    expected = float32_model.logits(tokens)
    cache = float32_model.new_cache(rows=2, context=first + 9)
    assert (float32_model.prefill(cache, 1, tokens[:first]) - expected[first - 1]).abs().max() <= LIMIT
    for n in range(first, first + 9):
        assert (float32_model.decode(cache, [None, tokens[n]])[1] - expected[n]).abs().max() <= LIMIT
    assert cache.lengths == [0, first + 9]


def test_batch_of_different_lengths_equals_each_alone(float32_model: Model) -> None:
    float32_model.chunk = 50
    lengths = [1, 4, 61, 128, 263]
    prompts = [random_tokens(n, seed=n) for n in lengths]
    cache = float32_model.new_cache(rows=5, context=280)
    after = float32_model.extend(cache, prompts)
    for row, prompt in enumerate(prompts):
        assert (after[row] - float32_model.logits(prompt)[-1]).abs().max() <= LIMIT
    # they go on at their own positions, one of them pausing
    more = [random_tokens(6, seed=100 + row) for row in range(5)]
    for n in range(6):
        after = float32_model.decode(cache, [None if row == 2 and n == 3 else more[row][n] for row in range(5)])
    del more[2][3]
    assert cache.lengths == [len(p) + len(m) for p, m in zip(prompts, more, strict=True)]
    for row in range(5):
        assert (after[row] - float32_model.logits(prompts[row] + more[row])[-1]).abs().max() <= LIMIT


def test_sequences_extend_by_different_numbers_of_tokens(float32_model: Model) -> None:
    parts = [
        [random_tokens(n, seed=7 * n + r) for n in ns] for r, ns in enumerate([(130, 1, 40), (3, 0, 1), (1, 129, 2)])
    ]
    cache = float32_model.new_cache(rows=3, context=200)
    for turn in range(3):
        after = float32_model.extend(cache, [row[turn] for row in parts])
    for row, pieces in enumerate(parts):
        assert (after[row] - float32_model.logits([t for piece in pieces for t in piece])[-1]).abs().max() <= LIMIT


def test_a_freed_row_forgets(float32_model: Model) -> None:
    cache = float32_model.new_cache(rows=1, context=300)
    float32_model.prefill(cache, 0, random_tokens(300, seed=1))
    cache.free(0)
    tokens = random_tokens(150, seed=2)
    assert (float32_model.prefill(cache, 0, tokens) - float32_model.logits(tokens)[-1]).abs().max() <= LIMIT


def test_planted_stale_window_is_caught(float32_model: Model) -> None:
    tokens = random_tokens(150)
    cache = float32_model.new_cache(rows=1, context=150)
    float32_model.prefill(cache, 0, tokens[:-1])
    cache.layers[0].kv[0, (149 - 20) % (31 + 150)] += 1  # one key inside the window of the next token
    assert (float32_model.decode(cache, [tokens[-1]])[0] - float32_model.logits(tokens)[-1]).abs().max() > 100 * LIMIT


def test_beyond_the_context_is_refused_before_anything_changes(float32_model: Model) -> None:
    cache = float32_model.new_cache(rows=2, context=10)
    float32_model.prefill(cache, 1, random_tokens(8))
    with pytest.raises(UsageError, match="11 tokens; its cache has a context of 10"):
        float32_model.prefill(cache, 1, random_tokens(3))
    assert cache.lengths == [0, 8]


def test_beyond_the_model_is_refused(float32_model: Model) -> None:
    with pytest.raises(UsageError, match="4097"):
        float32_model.new_cache(rows=1, context=4097)


@pytest.mark.parametrize(("tokens", "said"), [([], "no tokens"), ([0, 320], "320"), ([-1], "-1")])
def test_bad_tokens_are_refused(float32_model: Model, tokens: list[int], said: str) -> None:
    cache = float32_model.new_cache(rows=1, context=10)
    with pytest.raises(UsageError, match=said):
        float32_model.prefill(cache, 0, tokens)
