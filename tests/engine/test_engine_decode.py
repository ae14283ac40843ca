"""Decoding with static shapes gives what the plain forward pass gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_checkpoint import random_tokens

from flagrelease import engine
from flagrelease.engine.decode import feed as feed_module
from flagrelease.engine.decode.decoder import Decoder
from flagrelease.engine.v4.model import Model
from flagrelease.errors import UsageError

LENGTHS = (5, 140, 64)


def replay(model: Model, prompts: list[list[int]], more: list[list[int | None]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [steps, B, V] by the plain pass and by the decoder."""
    plain, static = (model.new_cache(len(prompts), 300) for _ in range(2))
    decoder = Decoder(model, static)
    for cache in (plain, static):
        model.extend(cache, prompts)
    expected = torch.stack([model.decode(plain, tokens) for tokens in more])
    got = torch.stack([decoder.decode(tokens).clone() for tokens in more])
    assert plain.lengths == static.lengths
    return expected, got


@pytest.fixture
def prompts() -> list[list[int]]:
    return [random_tokens(n, seed=n) for n in LENGTHS]


def columns(steps: int) -> list[list[int | None]]:
    rows = [random_tokens(steps, seed=50 + n) for n in range(len(LENGTHS))]
    return [list(step) for step in zip(*rows, strict=True)]


def test_float32_logits_of_every_step(bf16_release: Path, prompts: list[list[int]]) -> None:
    # 9 steps complete windows of ratio 4 in every row; 140 tokens have one of ratio 128 behind them
    expected, got = replay(engine.load(bf16_release, "bf16", torch.float32), prompts, columns(9))
    assert (got - expected).abs().max() <= 1e-4


def test_a_window_of_128_is_completed(bf16_release: Path) -> None:
    expected, got = replay(
        engine.load(bf16_release, "bf16", torch.float32), [random_tokens(n) for n in (125, 2, 9)], columns(6)
    )
    assert (got - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("numerics", ["native", "bf16"])
def test_native_numerics(native_release: Path, numerics: str, prompts: list[list[int]]) -> None:
    expected, got = replay(engine.load(native_release, numerics), prompts, columns(5))  # type: ignore[arg-type]
    # one flipped rounding changes all that follows, so most, not all, are the same
    assert torch.equal(got.argmax(-1), expected.argmax(-1))
    assert (got - expected).norm() <= 0.05 * expected.norm()


def test_rows_without_a_token_keep_their_caches(bf16_release: Path, prompts: list[list[int]]) -> None:
    more = columns(6)
    more[1][0], more[2][0], more[4][2] = None, None, None
    expected, got = replay(engine.load(bf16_release, "bf16", torch.float32), prompts, more)
    given = torch.tensor([[token is not None for token in tokens] for tokens in more])
    assert (got - expected)[given].abs().max() <= 1e-4


def test_growing_sizes_and_reaches(
    bf16_release: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "SHORTEST_REACH", 8)
    more = columns(5)
    more[0], more[1] = [more[0][0], None, None], [None, more[1][1], None]
    expected, got = replay(engine.load(bf16_release, "bf16", torch.float32), prompts, more)
    given = torch.tensor([[token is not None for token in tokens] for tokens in more])
    assert (got - expected)[given].abs().max() <= 1e-4


def test_planted_a_window_too_short(
    bf16_release: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = engine.load(bf16_release, "bf16", torch.float32)
    exact = model.ops.decode_attention
    monkeypatch.setattr(type(model.ops), "decode_attention", staticmethod(lambda *a: exact(*a[:8], a[8] - 1, *a[9:])))
    expected, got = replay(model, prompts, columns(2))
    assert (got - expected).abs().max() > 1e-3


def test_refusals(bf16_release: Path) -> None:
    model = engine.load(bf16_release, "bf16", torch.float32)
    decoder = Decoder(model, model.new_cache(1, 2))
    with pytest.raises(UsageError, match="vocabulary"):
        decoder.decode([100000])
    with pytest.raises(UsageError, match="no tokens"):
        decoder.decode([None])
    decoder.decode([1])
    decoder.decode([1])
    with pytest.raises(UsageError, match="context of 2"):
        decoder.decode([1])
