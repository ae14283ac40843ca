"""Exact tests and intervals that stand beside the rule, against scipy and against counting all cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from flagrelease.validate.statistics.exact import mcnemar, permutation
from flagrelease.validate.statistics.intervals import bootstrap_mean, wilson


@pytest.mark.parametrize(("only_native", "only_chip"), [(0, 0), (1, 0), (3, 9), (9, 3), (7, 7), (40, 22), (0, 12)])
def test_mcnemar_is_scipys_exact_binomial_test(only_native: int, only_chip: int) -> None:
    total = only_native + only_chip
    expected = scipy.stats.binomtest(only_native, total).pvalue if total else 1.0
    assert mcnemar(only_native, only_chip) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(6))
def test_permutation_by_exchanging_all_labels(seed: int) -> None:
    """2k answers of an item can be dealt to the sides in C(2k, k) ways; of three items with k = 2, in 216."""
    rng = np.random.default_rng(seed)
    native, chip = (rng.integers(0, 2, (3, 2)).astype(float) for _ in range(2))
    answers = np.concatenate([native, chip], axis=1)
    observed = abs(chip.sum() - native.sum())
    deals = list(itertools.combinations(range(4), 2))
    reached = 0
    for deal in itertools.product(deals, repeat=3):
        right = sum(answers[i, list(drawn)].sum() for i, drawn in enumerate(deal))
        reached += abs(2 * right - answers.sum()) >= observed
    assert permutation(native, chip) == pytest.approx(reached / len(deals) ** 3)


def test_permutation_by_scipys_hypergeometric_draws() -> None:
    rng = np.random.default_rng(4)
    p = rng.beta(0.5, 0.3, 198)
    native = (rng.random((198, 8)) < p[:, None]).astype(float)
    chip = (rng.random((198, 8)) < (p - 0.02).clip(0)[:, None]).astype(float)
    right = (native.sum(axis=1) + chip.sum(axis=1)).astype(int)
    draws = scipy.stats.hypergeom.rvs(16, right, 8, size=(20_000, 198), random_state=2).sum(axis=1)
    observed = abs(chip.sum() - native.sum())
    expected = np.mean(np.abs(2 * draws - right.sum()) >= observed)
    assert permutation(native, chip) == pytest.approx(expected, abs=0.015)


def test_permutation_of_equal_sides_is_one() -> None:
    same = np.array([[1.0, 0, 1, 0], [1, 1, 1, 1]])
    assert permutation(same, same) == pytest.approx(1)


@pytest.mark.parametrize(("right", "n"), [(0, 30), (30, 30), (22, 30), (139, 198)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_scipys(right: int, n: int, confidence: float) -> None:
    expected = scipy.stats.binomtest(right, n).proportion_ci(confidence, method="wilson")
    assert wilson(right / n, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_is_scipys(seed: int) -> None:
    values = np.random.default_rng(seed).exponential(size=60) - 1.2  # skewed, so that bias and acceleration matter
    expected = scipy.stats.bootstrap((values,), np.mean, method="BCa", n_resamples=9999, rng=seed).confidence_interval
    low, high = bootstrap_mean(values, 0.95, seed=0)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.04)
    plain = np.quantile(values[np.random.default_rng(0).integers(0, 60, (9999, 60))].mean(axis=1), [0.025, 0.975])
    assert abs(high - plain[1]) > 0.01  # the percentile interval would not do


def test_bootstrap_of_values_that_are_all_the_same() -> None:
    assert bootstrap_mean(np.full(30, 0.25), 0.95, seed=0) == (0.25, 0.25)
