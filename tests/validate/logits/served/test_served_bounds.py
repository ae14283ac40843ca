"""Bounds of KL from a server's short list, against KL of whole distributions, random ones and the worst that fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.stats import entropy

from flagrelease.validate.logits.distribution import Kept
from flagrelease.validate.logits.served.bounds import LEAST, NOTHING, SLACK, Listed, bound, listed_of

V, T = 24, 6
Probabilities = NDArray[np.float64]


def distributions(seed: int, noise: float, *, ties: bool = False) -> tuple[Probabilities, Probabilities]:
    """Two [T, V], the second one the first with noise on its logits; with `ties` logits are whole numbers."""
    generator = np.random.default_rng(seed)
    first = generator.normal(size=(T, V)) * generator.uniform(0.3, 5)
    second = first + noise * generator.normal(size=(T, V))
    if ties:
        first, second = first.round(), second.round()
    return np.exp(log_softmax(first, -1)), np.exp(log_softmax(second, -1))


def keep(p: Probabilities, count: int, targets: NDArray[np.int64]) -> Kept:
    ids = np.argsort(-p, axis=-1, kind="stable")[:, :count]
    rest = np.array([np.delete(row, kept).sum() for row, kept in zip(p, ids, strict=True)])
    with np.errstate(divide="ignore"):
        logp, tail, own = (np.log(x) for x in (np.take_along_axis(p, ids, -1), rest, p[np.arange(len(p)), targets]))
    return Kept(ids.astype(np.int32), logp.astype(np.float32), tail.astype(np.float32), own.astype(np.float32))


def over_kept(p: Probabilities, q: Probabilities, count: int) -> Probabilities:
    """KL over the first distribution's `count` most likely tokens and one bucket, by scipy."""
    found = []
    for one, other in zip(p, q, strict=True):
        ids = np.argsort(-one, kind="stable")[:count]
        cells = [np.append(x[ids], np.delete(x, ids).sum()) for x in (one, other)]
        found.append(entropy(*(cell if count < V else cell[:-1] for cell in cells)))
    return np.array(found)


def another_with_the_same_list(q: Probabilities, listed: Listed, generator: np.random.Generator) -> Probabilities:
    """A distribution that a server could hide behind the list: other masses on the unlisted tokens, below the ceiling.

    Most of them get nearly nothing.
    """
    made = q.copy()
    for row, (ids, ceiling) in enumerate(zip(listed.ids, np.exp(listed.ceiling), strict=True)):
        free = np.setdiff1d(np.arange(V), ids)
        left = q[row, free].sum()
        made[row, free] = 0
        for token in generator.permutation(free):
            made[row, token] = min(ceiling, left, generator.choice([1e-9, left, ceiling, left / 2]))
            left -= made[row, token]
        for token in free:  # what is left must go somewhere
            more = min(ceiling - made[row, token], left)
            made[row, token] += more
            left -= more
        assert left < 1e-12
    return made


targets_of = st.integers(0, V - 1)


@given(st.integers(0, 2**31), st.floats(0, 3), st.integers(1, V), st.integers(2, V), targets_of, st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_bound_holds(seed: int, noise: float, listed: int, kept: int, target: int, ties: bool) -> None:
    p, q = distributions(seed, noise, ties=ties)
    targets = np.full(T, target)
    bounds = bound(keep(p, kept, targets), listed_of(keep(q, V, targets), targets, listed), V)
    whole, variation = over_kept(p, q, kept), np.abs(p - q).sum(-1) / 2
    assert (bounds.lower <= whole + 1e-6).all()
    assert (whole <= bounds.upper + 2 * SLACK * (1 + whole)).all() or listed < V
    assert (over_kept(p, q, V) >= bounds.lower - 1e-6).all()
    assert (bounds.least_variation <= variation + 1e-6).all()
    assert (variation <= bounds.most_variation + 1e-6).all()


@given(st.integers(0, 2**31), st.floats(0, 3), st.integers(1, V - 2), st.integers(2, V))
@settings(max_examples=60, deadline=None)
def test_no_distribution_behind_the_same_list_is_nearer_than_the_lower_bound(
    seed: int, noise: float, count: int, kept: int
) -> None:
    p, q = distributions(seed, noise)
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, V, T)
    listed = listed_of(keep(q, V, targets), targets, count)
    bounds = bound(keep(p, kept, targets), listed, V)
    for _ in range(2):
        hidden = another_with_the_same_list(q, listed, generator)
        assert (bounds.lower <= over_kept(p, np.maximum(hidden, 1e-300), kept) + 1e-5).all()
        variation = np.abs(p - hidden).sum(-1) / 2
        assert (bounds.least_variation <= variation + 1e-6).all()
        assert (variation <= bounds.most_variation + 1e-6).all()


@pytest.mark.parametrize(("count", "kept", "seed"), [(1, 6, 0), (3, 10, 1), (5, V, 2)])
def test_the_lower_bound_is_the_minimum_that_a_solver_finds(count: int, kept: int, seed: int) -> None:
    p, q = distributions(seed, 1.5)
    targets = np.zeros(T, np.int64)
    listed = listed_of(keep(q, V, targets), targets, count)
    lower = bound(keep(p, kept, targets), listed, V).lower
    for row in range(2):
        free = np.setdiff1d(np.arange(V), listed.ids[row])
        mass, ceiling = q[row, free].sum(), np.exp(listed.ceiling[row])

        def far(hidden: Probabilities, row: int = row, free: NDArray[np.int64] = free) -> float:
            whole = q[row].copy()
            whole[free] = np.maximum(hidden, 1e-12)
            return float(over_kept(p[row : row + 1], whole[None] / whole.sum(), kept)[0])

        found = minimize(
            far,
            np.full(len(free), mass / len(free)),
            method="SLSQP",
            bounds=[(1e-12, ceiling)] * len(free),
            constraints={"type": "eq", "fun": lambda hidden, mass=mass: hidden.sum() - mass},
            options={"maxiter": 500, "ftol": 1e-12},
        )
        assert lower[row] == pytest.approx(found.fun, abs=1e-3, rel=1e-3)
        assert lower[row] <= found.fun + 1e-6


def test_a_likely_token_that_is_not_listed_counts_by_the_ceiling_and_not_by_the_merged_rest() -> None:
    """The reference gives 0.9 to a token that the server ranks below its three listed ones."""
    p, q = np.full((1, V), 0.1 / (V - 1)), np.full((1, V), 0.4 / (V - 3))
    p[0, 7] = 0.9
    q[0, :3] = 0.2
    q[0, 7] = q[0, 5]
    targets = np.zeros(1, np.int64)
    kept, listed = keep(p, V, targets), listed_of(keep(q, V, targets), targets, 3)
    ceiling = 0.2
    lower = bound(kept, listed, V).lower[0]
    unlisted_p, unlisted_q = p[0, 3:].sum(), q[0, 3:].sum()
    merged = 3 * p[0, 0] * np.log(p[0, 0] / 0.2) + unlisted_p * np.log(unlisted_p / unlisted_q)
    at_ceiling = (
        3 * p[0, 0] * np.log(p[0, 0] / 0.2)
        + 0.9 * np.log(0.9 / ceiling)
        + (unlisted_p - 0.9) * np.log((unlisted_p - 0.9) / (unlisted_q - ceiling))
    )
    assert lower == pytest.approx(at_ceiling, abs=1e-3)
    assert merged + 0.3 < lower <= over_kept(p, q, V)[0]


def test_a_whole_list_leaves_nothing_open() -> None:
    p, q = distributions(3, 1.0)
    targets = np.zeros(T, np.int64)
    bounds = bound(keep(p, V, targets), listed_of(keep(q, V, targets), targets, V), V)
    np.testing.assert_allclose(bounds.lower, over_kept(p, q, V), atol=1e-6)
    np.testing.assert_array_equal(bounds.lower, bounds.upper)
    np.testing.assert_allclose(bounds.unlisted, 0, atol=1e-12)


def test_a_kept_set_that_is_listed_whole_is_known_though_the_rest_is_not() -> None:
    p, q = distributions(4, 0.2)
    targets = np.zeros(T, np.int64)
    bounds = bound(keep(p, 3, targets), listed_of(keep(q, V, targets), targets, V - 4), V)
    known = np.isfinite(bounds.upper)
    assert known.any()
    np.testing.assert_allclose(bounds.upper[known], over_kept(p, q, 3)[known], atol=1e-4)


def test_unlisted_tokens_have_no_upper_bound() -> None:
    p, q = distributions(5, 0.1)
    targets = np.zeros(T, np.int64)
    assert np.isinf(bound(keep(p, V, targets), listed_of(keep(q, V, targets), targets, 5), V).upper).all()


def test_a_token_that_the_server_says_is_impossible_is_far_and_finite() -> None:
    """JSON has no minus infinity; servers write -9999, some -inf."""
    p, _ = distributions(6, 0)
    targets = np.zeros(T, np.int64)
    kept = keep(p, V, targets)
    for written in (LEAST, -np.inf):
        listed = listed_of(kept, targets, V)
        listed.logq[:, 0] = written
        lower = bound(kept, listed, V).lower
        assert (lower > 9000 * p.max(-1)).all()
        assert np.isfinite(lower).all()


def test_equal_runs_are_0_apart() -> None:
    p, _ = distributions(7, 0)
    targets = np.arange(T)
    kept = keep(p, 10, targets)
    for count in (1, 4, 10):
        bounds = bound(kept, listed_of(kept, targets, count), V)
        assert (bounds.lower <= 1e-6).all()
        assert (bounds.least_variation <= 1e-6).all()


def test_without_a_list_only_the_token_that_followed_is_known() -> None:
    p, q = distributions(8, 1.0)
    targets = np.arange(T)
    whole = listed_of(keep(q, V, targets), targets, V)
    listed = Listed(targets[:, None], whole.target[:, None], whole.target, np.zeros(T))
    bounds = bound(keep(p, V, targets), listed, V)
    own, other = (np.exp(x) for x in (keep(p, V, targets).target.astype(float), whole.target))
    two = own * np.log(own / other) + (1 - own) * np.log((1 - own) / (1 - other))
    np.testing.assert_allclose(bounds.lower, two, atol=1e-4)
    assert (listed.ids != NOTHING).all()


def test_a_token_beyond_the_vocabulary_is_not_one_of_the_next_row() -> None:
    """Servers pad the head: a listed padding token has none of the reference's mass."""
    p = np.full((2, V), 1 / V)
    targets = np.zeros(2, np.int64)
    kept, listed = keep(p, V, targets), listed_of(keep(p, V, targets), targets, V)
    padded = replace(listed, ids=np.concatenate([listed.ids, [[V], [NOTHING]]], 1))
    padded = replace(padded, logq=np.concatenate([listed.logq, [[-50.0], [0.0]]], 1))
    np.testing.assert_allclose(bound(kept, padded, V).lower, bound(kept, listed, V).lower, atol=1e-6)
