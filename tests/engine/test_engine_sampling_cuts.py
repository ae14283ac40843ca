"""`top_k` and `min_p`: which tokens can be drawn, how often, and that rows beside them are drawn as without."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.sampling import Draws, Sampler, Sampling, choose
from flagrelease.errors import UsageError

PROBABILITIES = [0.4, 0.3, 0.15, 0.1, 0.05]
PLAIN = Sampling(temperature=1.0, seed=5)
DRAWS = 4000


def drawn(sampling: Sampling) -> list[float]:
    """How often each token is drawn."""
    logits = torch.tensor(PROBABILITIES).log().expand(DRAWS, -1)
    tokens = choose(Operators(), logits, Draws.of([Sampler(sampling).at(n) for n in range(DRAWS)], logits.device))
    return [tokens.count(token) / DRAWS for token in range(len(PROBABILITIES))]


def expected(kept: list[int], temperature: float = 1.0) -> list[float]:
    """By hand: what is kept, at this temperature, sums to 1."""
    weights = [p ** (1 / temperature) if n in kept else 0.0 for n, p in enumerate(PROBABILITIES)]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"top_k": 1}, [0]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 5}, [0, 1, 2, 3, 4]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_k": 0}, [0, 1, 2, 3, 4]),
        ({"min_p": 0.7}, [0, 1]),
        ({"min_p": 0.2}, [0, 1, 2, 3]),
        ({"min_p": 1.0}, [0]),
        ({"min_p": 0.2, "top_k": 3}, [0, 1, 2]),
        ({"top_k": 3, "top_p": 0.5}, [0, 1]),  # of the three that are left: 0.47, 0.35, 0.18
    ],
)
def test_what_is_kept_is_drawn_in_proportion(changes: dict[str, float], kept: list[int]) -> None:
    for got, wanted in zip(drawn(replace(PLAIN, **changes)), expected(kept), strict=True):
        assert abs(got - wanted) < 5 * math.sqrt(max(wanted * (1 - wanted), 0) / DRAWS) + 1e-9


def test_shares_are_those_after_the_temperature() -> None:
    # at temperature 2 the second token is sqrt(0.75) = 0.87 as likely as the first, the third 0.61
    for got, wanted in zip(drawn(replace(PLAIN, temperature=2.0, min_p=0.8)), expected([0, 1], 2.0), strict=True):
        assert abs(got - wanted) < 0.05


def test_tokens_as_likely_as_the_last_one_stay() -> None:
    logits = torch.tensor([[1.0, 1.0, 1.0, 0.0]]).expand(300, -1)
    tokens = choose(
        Operators(), logits, Draws.of([Sampler(replace(PLAIN, top_k=1)).at(n) for n in range(300)], logits.device)
    )
    assert set(tokens) == {0, 1, 2}


def test_rows_beside_a_cut_one_are_drawn_as_without_it() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    plain, greedy = Sampler(PLAIN).at(0), Sampler(Sampling(temperature=0)).at(0)
    alone = choose(Operators(), logits, Draws.of([plain, greedy, plain], logits.device))
    cut = Sampler(replace(PLAIN, top_k=2, min_p=0.5)).at(0)
    beside = choose(Operators(), logits, Draws.of([plain, greedy, cut], logits.device))
    assert alone[:2] == beside[:2]


def test_who_cuts_nothing_pays_nothing() -> None:
    draws = Draws.of([Sampler(PLAIN).at(0)] * 2, torch.device("cpu"))
    assert (draws.top_k, draws.top_p) == (None, None)
    assert Draws.of([Sampler(replace(PLAIN, temperature=0)).at(0)] * 2, torch.device("cpu")).temperature is None


@pytest.mark.parametrize("changes", [{}, {"temperature": 1e308}, {"temperature": 1e308, "top_p": 0.9, "top_k": 2}])
def test_a_token_that_is_not_allowed_is_not_drawn(changes: dict[str, float]) -> None:
    """Its logit is -inf; over a temperature that FP32 holds as infinite it was not a number, and won."""
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, -1.0]]).expand(50, -1)
    tokens = choose(
        Operators(), logits, Draws.of([Sampler(replace(PLAIN, **changes)).at(n) for n in range(50)], logits.device)
    )
    assert set(tokens) == {1, 3}


@pytest.mark.parametrize("changes", [{"top_k": -2}, {"min_p": -0.1}, {"min_p": 1.1}, {"min_p": math.nan}])
def test_values_without_meaning(changes: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(changes))):
        replace(PLAIN, **changes)


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 1e308}, {"temperature": 5e-324}, {"top_k": 2**31 - 1}, {"min_p": 5e-324}, {"top_p": 5e-324},
     {"seed": -(2**70)}],
)  # fmt: skip
def test_the_largest_and_smallest_values_of_the_door_are_drawn_from(changes: dict[str, float]) -> None:
    # what fails here fails in the engine's thread, and ends the service for everybody
    logits = torch.tensor(PROBABILITIES).log()[None]
    (token,) = choose(Operators(), logits, Draws.of([Sampler(replace(PLAIN, **changes)).at(0)], logits.device))
    assert 0 <= token < len(PROBABILITIES)
