"""Log-probabilities, ranks and alternatives against numpy in float64, with ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flagrelease.engine.scores import score


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 12), st.booleans())
def test_scores_and_ranks(seed: int, count: int, top: int, ties: bool) -> None:
    chance = np.random.default_rng(seed)
    logits = chance.normal(size=(count, 12)).astype(np.float32) * 4
    if ties:
        logits = np.round(logits / 4)  # topk keeps any of several equal ones, in any order
    tokens = chance.integers(12, size=count).tolist()
    wide = logits.astype(np.float64)
    logp = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    for row, token, one in zip(range(count), tokens, score(torch.from_numpy(logits), tokens, top), strict=True):
        order = sorted(range(12), key=lambda t: (-wide[row, t], t))  # the lower id first among equals
        assert one.token == token
        assert one.rank == order.index(token) + 1
        assert [t for t, _ in one.top] == order[:top]
        assert one.logprob == pytest.approx(logp[row, token], abs=1e-5)
        assert [p for _, p in one.top] == pytest.approx(logp[row, order[:top]], abs=1e-5)


def test_rank_one_is_the_token_that_is_chosen_greedily() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    best = int(logits.argmax(-1))
    assert score(logits, [best], 0)[0].rank == 1
    assert score(logits, [2], 0)[0].rank == 2


def test_more_rows_than_are_scored_at_once() -> None:
    logits = torch.randn(700, 30, generator=torch.Generator().manual_seed(0))
    tokens = logits.argmin(-1).tolist()
    scores = score(logits, tokens, 1)
    assert [one.rank for one in scores] == [30] * 700
    assert [one.top[0][0] for one in scores] == logits.argmax(-1).tolist()
