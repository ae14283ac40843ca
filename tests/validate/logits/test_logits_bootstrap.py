"""Intervals: coverage by simulation, and verdicts from where an interval lies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta

from flagrelease.records.report import together
from flagrelease.records.rules import LogitsLimits, LogitsRules
from flagrelease.validate.logits.bootstrap import Interval, draw_weights, interval, none_seen
from flagrelease.validate.logits.judge import Judge, exactly, judge
from flagrelease.validate.logits.sums import FIELDS, Sums


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Documents of unlike length whose tokens share a level: intervals by token would cover far less."""
    generator = np.random.default_rng(1)
    documents, studies, truth = 64, 600, 1.0
    weights = draw_weights(documents, 400, seed=3)
    covered = covered_by_token = 0
    for _ in range(studies):
        tokens = generator.integers(100, 500, documents)
        level = generator.gamma(4, truth / 4, documents)
        totals = generator.gamma(2 * tokens, level / 2)  # a token's KL has shape 2 around its document's level
        means = weights @ totals / (weights @ tokens)
        found = interval(totals.sum() / tokens.sum(), means, 0.95)
        covered += found.low <= truth <= found.high
        by_token = 1.96 * np.sqrt(truth**2 / 2 / tokens.sum())
        covered_by_token += abs(found.value - truth) <= by_token
    sampling = 3 * math.sqrt(0.95 * 0.05 / studies)
    assert 0.95 - 0.02 - sampling <= covered / studies <= 0.95 + sampling  # a little narrow with 64 documents
    assert covered_by_token / studies < 0.5


def test_weights_are_resamples_and_the_same_for_the_same_seed() -> None:
    weights = draw_weights(10, 500, seed=7)
    assert weights.shape == (500, 10)
    assert (weights.sum(1) == 10).all()
    np.testing.assert_array_equal(weights, draw_weights(10, 500, seed=7))
    assert not np.array_equal(weights, draw_weights(10, 500, seed=8))
    np.testing.assert_allclose(weights.var(0), 0.9, atol=0.25)  # binomial(10, 1/10)


@pytest.mark.parametrize("tokens", [1, 50, 5000])
def test_none_seen_gets_the_exact_bound_of_a_binomial(tokens: int) -> None:
    found = none_seen(Interval(0.0, 0.0, 0.0), tokens, 0.95)
    assert found.high == pytest.approx(beta.ppf(0.975, 1, tokens))  # Clopper and Pearson
    assert none_seen(Interval(0.1, 0.05, 0.2), tokens, 0.95) == Interval(0.1, 0.05, 0.2)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.5, 0.5, "pass"), (0.9, 1.1, "cannot-tell"), (1.1, 1.2, "fail"), (-1.5, -1.1, "fail"), (-2, 2, "cannot-tell")],
)
def test_verdicts_follow_the_interval(low: float, high: float, verdict: str) -> None:
    assert judge("perplexity", Interval((low + high) / 2, low, high), -1, 1).verdict == verdict


@pytest.mark.parametrize(
    ("name", "at_least", "at_most"),
    [
        ("top1", 0.0, None), ("top1_clear", -19.0, None), ("last_error", None, 1.0), ("early_cosine", 0.0, None),
        ("late_cosine", -0.6, None), ("experts", 0.0, None),
    ],
)  # fmt: skip
def test_a_limit_that_a_port_which_knows_nothing_holds_is_not_informative(
    name: str, at_least: float | None, at_most: float | None
) -> None:
    """Limits loosened 40 times were broken by nothing, and what held them passed."""
    good = 0.01 if at_least is None else 0.99
    assert exactly(name, good, at_least, at_most).verdict == "not-informative"
    narrower = (None if at_least is None else 0.5), (None if at_most is None else 0.5)
    assert exactly(name, good, *narrower).verdict == "pass"


def test_a_stage_without_one_part_is_no_pass() -> None:
    assert together([]) == "not-informative"


def test_a_number_that_does_not_exist_decides_nothing() -> None:
    measure = exactly("ratio", math.nan, 0.8, 1.25)
    assert measure.verdict == "not-informative"
    assert measure.to_json()["value"] is None
    assert exactly("outliers", 1, at_most=0).verdict == "fail"


def sums_of(documents: int, **columns: float) -> Sums:
    table = np.zeros((documents, len(FIELDS)))
    for name, value in columns.items():
        table[:, FIELDS.index(name)] = value
    return Sums(table)


LIMITS = LogitsLimits(mean_kl=2e-3, floors=3, tail_kl=0.1, top1=0.97, top1_clear=0.99, margin=0.5, perplexity=0.003)
SOUND = {"tokens": 1000, "kl": 1.0, "agree": 990, "clear": 700, "clear_agree": 700, "reference": -2000, "tested": -2000}


def verdicts(floor: float = 0.0, **changes: float) -> dict[str, str]:
    rules = LogitsRules()
    judge = Judge(rules, draw_weights(20, 200, 0), 120)
    return {m.name: m.verdict for m in judge.measures(sums_of(20, **SOUND | changes), LIMITS, floor)}


def test_each_limit_is_broken_by_its_own_statistic() -> None:
    assert set(verdicts().values()) == {"pass"}
    broken = {
        "mean_kl": {"kl": 3.0},
        "above": {"above": 2},
        "top1": {"agree": 960},
        "top1_clear": {"clear_agree": 690},
        "perplexity": {"tested": -2004},
    }
    for name, change in broken.items():
        odd = {measure for measure, verdict in verdicts(**change).items() if verdict != "pass"}
        assert odd == {name}
        assert verdicts(**change)[name] == "fail"


@pytest.mark.parametrize(
    ("changes", "floor", "name"),
    [
        ({"mean_kl": 4.8}, 0.0, "mean_kl"),
        ({"tail_kl": 4.8}, 0.0, "above"),
        ({"perplexity": 120.0}, 0.0, "perplexity"),
        ({}, 1.6, "mean_kl"),
    ],
)
def test_limits_beyond_equal_probabilities_are_not_informative(
    changes: dict[str, float], floor: float, name: str
) -> None:
    """Of 120 tokens: a port that gives each the same probability is ln 120 = 4.787 nats away at most.

    A noise floor of 1.6, three times, is more than that: a baseline that disagrees with itself proves nothing.
    """
    judge = Judge(LogitsRules(), draw_weights(20, 200, 0), vocabulary=120)
    limits = LIMITS.model_copy(update=changes)
    found = {measure.name: measure.verdict for measure in judge.measures(sums_of(20, **SOUND), limits, floor)}
    assert [measure for measure, verdict in found.items() if verdict == "not-informative"] == [name]
    assert together(found.values()) == "not-informative"


def test_the_noise_floor_raises_the_limit_of_kl() -> None:
    assert verdicts(kl=3.0, floor=9e-4)["mean_kl"] == "fail"
    assert verdicts(kl=3.0, floor=1.1e-3)["mean_kl"] == "pass"


def test_the_ratio_is_judged_over_the_same_resamples() -> None:
    judge = Judge(LogitsRules(), draw_weights(20, 200, 0), 120)
    generator = np.random.default_rng(0)
    native = sums_of(20, tokens=1000)
    native.field("kl")[:] = generator.gamma(1, 5, 20)
    same, twice = Sums(native.table.copy()), Sums(native.table.copy())
    twice.field("kl")[:] *= 2
    assert judge.ratio(same, native).low == judge.ratio(same, native).high == 1
    assert judge.ratio(twice, native).verdict == "fail"


def test_loosened_limits_allow_so_many_times_the_difference() -> None:
    loose = LIMITS.loosened(2)
    assert (loose.mean_kl, loose.tail_kl, loose.perplexity) == pytest.approx((4e-3, 0.2, 0.006))
    assert (loose.top1, loose.top1_clear) == pytest.approx((0.94, 0.98))
    assert loose.floors == LIMITS.floors
