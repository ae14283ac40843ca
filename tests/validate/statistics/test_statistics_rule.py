"""The non-inferiority rule: its boundaries, its verdicts, and its error rates against simulation.

Figures "of the facts sheet" were computed and simulated by other people with other code.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from simulated_exams import items, lose, pairs, shares, shift

from flagrelease.validate.statistics import normal
from flagrelease.validate.statistics.decision import SamplingPlan, chances, decide, obrien_fleming
from flagrelease.validate.statistics.paired import Paired, pair, standard_error

RUNS = 4000


def seen(difference: float, se: float, k: int = 8, n: int = 198) -> Paired:
    return Paired(n, k, 0.9, 0.9 + difference, difference, se, se**2 * n * k / 2, 0.0, 0.0)


@pytest.mark.parametrize(("fraction", "first", "last"), [(0.5, 2.373, 1.678), (0.25, 3.294, 1.647)])
def test_boundaries_are_those_of_the_facts_sheet(fraction: float, first: float, last: float) -> None:
    assert obrien_fleming(0.05, fraction) == pytest.approx((first, last), abs=5e-4)


@pytest.mark.parametrize("alpha", [0.01, 0.025, 0.05, 0.1])
@pytest.mark.parametrize("fraction", [0.1, 1 / 3, 0.5, 0.8, 0.95])
def test_boundaries_spend_alpha_by_scipys_bivariate_normal(alpha: float, fraction: float) -> None:
    z = obrien_fleming(alpha, fraction)
    correlation = math.sqrt(fraction)
    both_below = scipy.stats.multivariate_normal.cdf(z, cov=[[1, correlation], [correlation, 1]])
    assert 1 - both_below == pytest.approx(alpha, abs=2e-5)
    assert z[0] == pytest.approx(z[1] / correlation)


@pytest.mark.parametrize(("fraction", "level"), [(0.5, 0.080), (0.25, 0.088)])
def test_looking_twice_with_1645_would_pass_too_often(fraction: float, level: float) -> None:
    spent = normal.cdf(-1.645) + normal.between_and_above(-math.inf, 1.645, 1.645, math.sqrt(fraction))
    assert spent == pytest.approx(level, abs=5e-4)


def test_one_look_is_the_ordinary_z() -> None:
    assert SamplingPlan(0.02, 0.05, (8,)).critical == pytest.approx((scipy.stats.norm.ppf(0.95),))


def test_difference_and_error_by_hand() -> None:
    native = np.array([[1.0, 1, 0, 0], [1, 1, 1, 1]])
    chip = np.array([[1.0, 0, 0, 0], [1, 1, 1, 0]])
    result = pair(native, chip)
    within = 1 / 3 + 0 + 1 / 4 + 1 / 4  # unbiased variances of 2 of 4, 4 of 4, 1 of 4, 3 of 4
    assert (result.n, result.k, result.native, result.chip, result.difference) == (2, 4, 0.75, 0.5, -0.25)
    assert result.se == pytest.approx(math.sqrt(within / 4) / 2)
    assert result.variance == pytest.approx(within / 4)
    assert result.native_run_sd == pytest.approx(np.std([1, 1, 0.5, 0.5], ddof=1))
    assert standard_error(result.variance, 2, 4) == pytest.approx(result.se)


@pytest.mark.parametrize("shapes", [((3, 1), (3, 1)), ((3, 4), (3, 5)), ((3, 4), (2, 4)), ((12,), (12,))])
def test_scores_that_are_not_paired(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="shapes"):
        pair(np.ones(shapes[0]), np.ones(shapes[1]))


@pytest.mark.parametrize(
    ("difference", "se", "margin", "lower", "verdict"),
    [  # the facts sheet's worked examples: SGLang, marlin to flashinfer, GPQA and AIME25
        (-0.0082, 0.00494, 0.02, -0.0163, "pass"),
        (-0.0082, 0.00494, 0.015, -0.0163, "cannot-tell"),
        (-0.0063, 0.0102, 0.0333, -0.0231, "pass"),
        (-0.0400, 0.00494, 0.02, -0.0481, "fail"),
    ],
)
def test_worked_examples(difference: float, se: float, margin: float, lower: float, verdict: str) -> None:
    decision = decide(SamplingPlan(margin, 0.05, (8,)), seen(difference, se))
    assert decision.lower == pytest.approx(lower, abs=6e-5)
    assert decision.verdict == verdict


def test_the_first_look_is_stricter_and_says_what_is_planned() -> None:
    plan = SamplingPlan(0.02, 0.05, (8, 16))
    assert decide(SamplingPlan(0.02, 0.05, (8,)), seen(-0.008, 0.006)).verdict == "pass"
    first = decide(plan, seen(-0.008, 0.006))
    assert (first.verdict, first.look, first.further_planned) == ("cannot-tell", 1, 8)
    last = decide(plan, seen(-0.008, 0.006, k=16))
    assert (last.verdict, last.look, last.further_planned, last.further_needed) == ("pass", 2, 0, None)


def test_repeats_that_are_not_a_look() -> None:
    with pytest.raises(ValueError, match="the plan looks at"):
        decide(SamplingPlan(0.02, 0.05, (8, 16)), seen(0, 0.01, k=12))
    with pytest.raises(ValueError, match="one, or two"):
        SamplingPlan(0.02, 0.05, (16, 8))


@pytest.mark.parametrize("difference", [-0.035, -0.025, -0.01, 0.0, 0.01])
def test_the_further_repeats_are_the_fewest_that_would_decide(difference: float) -> None:
    plan, se = SamplingPlan(0.02, 0.05, (8,)), 0.03
    needed = decide(plan, seen(difference, se)).further_needed
    assert needed is not None
    for more, decided in ((needed, True), (needed - 1, False)):
        later = seen(difference, se * math.sqrt(8 / (8 + more)), k=8 + more)
        assert (decide(SamplingPlan(0.02, 0.05, (8 + more,)), later).verdict != "cannot-tell") is decided


def test_no_number_of_repeats_decides_a_drop_of_exactly_the_margin() -> None:
    assert decide(SamplingPlan(0.02, 0.05, (8,)), seen(-0.02, 0.01)).further_needed is None


def test_answers_that_never_vary_are_compared_as_they_are() -> None:
    solved, lost = np.ones((30, 4)), np.ones((30, 4))
    lost[:2] = 0
    plan = SamplingPlan(0.0333, 0.05, (4,))
    assert decide(plan, pair(solved, solved)).verdict == "pass"
    assert decide(plan, pair(solved, lost)).verdict == "fail"


@pytest.mark.parametrize(
    ("n", "variance", "rows"),
    [  # facts 3.3: smallest margin, in points, by repeats, for 80 % and 90 % power
        (198, 0.04, {1: (5.0, 5.9), 4: (2.5, 2.9), 8: (1.8, 2.1), 16: (1.2, 1.5), 32: (0.9, 1.0), 64: (0.6, 0.7)}),
        (198, 0.10, {1: (7.9, 9.3), 4: (4.0, 4.7), 8: (2.8, 3.3), 16: (2.0, 2.3), 32: (1.4, 1.6), 64: (1.0, 1.2)}),
        (30, 0.02, {1: (9.1, 10.7), 4: (4.5, 5.3), 8: (3.2, 3.8), 16: (2.3, 2.7), 32: (1.6, 1.9), 64: (1.1, 1.3)}),
        (30, 0.05, {4: (7.2, 8.4), 8: (5.1, 6.0), 16: (3.6, 4.2), 32: (2.5, 3.0), 64: (1.8, 2.1)}),
    ],
)
def test_power_at_the_margins_of_the_facts_sheet(n: int, variance: float, rows: dict[int, tuple[float, float]]) -> None:
    for k, margins in rows.items():
        for margin, power in zip(margins, (0.8, 0.9), strict=True):
            needed = (1.645 + normal.quantile(power)) * standard_error(variance, n, k)
            assert 100 * needed == pytest.approx(margin, abs=0.051 if margin < 10 else 0.51)
            if margin / 100 * (1 - margin / 100) / 2 > 0.9 * variance:
                continue  # few repeats of a nearly solved exam: the floor of the error makes the rule stricter
            ends = [
                chances(SamplingPlan((margin + d) / 100, 0.05, (k,)), 0.0, variance, n).passes for d in (-0.051, 0.051)
            ]
            assert ends[0] <= power <= ends[1]  # the sheet's margins are rounded to 0.1


@pytest.mark.parametrize(
    ("variance", "by_drop"),
    [
        (0.04, (0.99, 0.84, 0.50, 0.07, 0.01)),
        (0.10, (0.94, 0.74, 0.50, 0.17, 0.06)),
        (0.15, (0.90, 0.70, 0.50, 0.22, 0.10)),
    ],
)
def test_the_rule_of_five_points_and_one_run(variance: float, by_drop: tuple[float, ...]) -> None:
    """Facts 3.4: what the standard error says of "at most 5 points, one run each"."""
    se = standard_error(variance, 198, 1)
    passes = [normal.cdf((0.05 - drop) / se) for drop in (0, 0.03, 0.05, 0.08, 0.10)]
    assert passes == pytest.approx(by_drop, abs=0.0051)


CASES = [  # n, mean, v_w, looks, margin, power with one look as the facts sheet simulated it (3.5)
    (198, 0.88, 0.04, (8,), 0.02, 0.88),
    (198, 0.70, 0.10, (8,), 0.03, 0.84),
    (30, 0.90, 0.02, (32,), 0.0333, 1.00),
    (30, 0.73, 0.055, (32,), 0.0333, 0.92),
    (198, 0.88, 0.04, (8, 16), 0.02, None),
    (198, 0.70, 0.10, (4, 16), 0.03, None),
    (30, 0.73, 0.055, (32, 64), 0.0333, None),
]


@pytest.mark.parametrize(("n", "mean", "variance", "looks", "margin", "power"), CASES)
def test_power_in_simulation(
    n: int, mean: float, variance: float, looks: tuple[int, ...], margin: float, power: float | None
) -> None:
    rng = np.random.default_rng(n + looks[-1])
    p = items(n, mean, variance, rng)
    plan = SamplingPlan(margin, 0.05, looks)
    ends = shares(plan, pairs(p, p, looks, RUNS, rng))
    predicted = chances(plan, 0.0, variance, n).passes
    assert ends["pass"] == pytest.approx(predicted, abs=sampling_error(predicted) + 0.01)
    if power is not None:
        assert ends["pass"] == pytest.approx(power, abs=sampling_error(power) + 0.01)


@pytest.mark.parametrize(("n", "mean", "variance", "looks", "margin", "power"), CASES)
@pytest.mark.parametrize("how", [shift, lose])
def test_size_in_simulation(
    n: int, mean: float, variance: float, looks: tuple[int, ...], margin: float, power: float | None, how
) -> None:
    """A port that is worse by exactly the margin passes in 5 % of all runs, whether a little on all items or on few."""
    rng = np.random.default_rng(n + looks[0])
    p = items(n, mean, variance, rng)
    ends = shares(SamplingPlan(margin, 0.05, looks), pairs(p, how(p, margin), looks, RUNS, rng))
    assert ends["pass"] == pytest.approx(0.05, abs=sampling_error(0.05) + 0.006)


def test_the_simulation_sees_a_rule_that_is_wrong() -> None:
    """The point estimate alone passes half of the ports that are worse by exactly the margin, as facts 3.5 says."""
    rng = np.random.default_rng(5)
    p = items(198, 0.88, 0.04, rng)
    runs = pairs(p, shift(p, 0.02), (8,), RUNS, rng)
    assert np.mean([seen.difference > -0.02 for (seen,) in runs]) == pytest.approx(0.48, abs=0.04)
    assert shares(SamplingPlan(0.02, 0.4999, (8,)), runs)["pass"] > 0.4


def test_the_simulation_counts_as_the_rule_does() -> None:
    rng = np.random.default_rng(8)
    native, chip = (rng.integers(0, 2, (40, 6)).astype(float) for _ in range(2))
    result = pair(native, chip)
    rates = native.mean(axis=1), chip.mean(axis=1)
    within = sum(float((r * (1 - r)).sum()) * 6 / 5 for r in rates)
    assert result.se == pytest.approx(math.sqrt(within / 6) / 40)


@pytest.mark.parametrize("drop", [0.0, 0.01, 0.02, 0.03, 0.05])
@pytest.mark.parametrize("looks", [(8,), (8, 16), (4, 16)])
def test_chances_by_scipy(drop: float, looks: tuple[int, ...]) -> None:
    plan, n, variance = SamplingPlan(0.02, 0.05, looks), 198, 0.04
    rng = np.random.default_rng(3)
    steps = np.diff((0, *looks))
    increments = rng.normal(-drop, np.sqrt(2 * variance / (n * steps)), (200_000, len(looks)))
    differences = np.cumsum(increments * steps, axis=1) / np.array(looks)
    z, se = plan.critical, [standard_error(variance, n, k) for k in looks]
    open_, passes, fails = np.ones(200_000, bool), 0.0, 0.0
    for at in range(len(looks)):
        won = open_ & (differences[:, at] - z[at] * se[at] > -0.02)
        lost = open_ & (differences[:, at] + z[at] * se[at] < -0.02)
        passes, fails, open_ = passes + won.mean(), fails + lost.mean(), open_ & ~won & ~lost
    ends = chances(plan, drop, variance, n)
    assert (ends.passes, ends.fails) == pytest.approx((passes, fails), abs=0.006)
    assert ends.passes + ends.fails + ends.cannot_tell == pytest.approx(1)


def test_chances_where_answers_never_vary() -> None:
    """They are those of answers that vary as little as the floor of the error assumes."""
    plan = SamplingPlan(0.02, 0.05, (8, 16))
    assert chances(plan, 0.01, 0.0, 198) == chances(plan, 0.01, 0.02 * 0.98 / 2, 198)
    assert chances(plan, 0.01, 0.0, 198) != chances(plan, 0.01, 0.02, 198)


SATURATED = [(198, 8, 0.02), (30, 32, 0.0333), (30, 4, 0.10), (12, 4, 0.10), (4, 8, 0.10)]


@pytest.mark.parametrize(("n", "k", "margin"), SATURATED)
@pytest.mark.parametrize("native", [1.0, 0.995])
def test_size_in_simulation_where_nearly_all_is_right(n: int, k: int, margin: float, native: float) -> None:
    rng = np.random.default_rng(n + k)
    p = np.full(n, native)
    ends = shares(SamplingPlan(margin, 0.05, (k,)), pairs(p, p - margin, (k,), RUNS, rng))
    assert ends["pass"] <= (0.05 if native == 1 else 0.065) + sampling_error(0.05)


def test_without_the_floor_it_would_not_hold() -> None:
    rng = np.random.default_rng(2)
    p = np.ones(12)
    runs = pairs(p, p - 0.1, (4,), RUNS, rng)
    naive = np.mean([seen.difference - 1.645 * seen.se > -0.1 for (seen,) in runs])
    assert naive > 0.1


def test_a_handful_of_right_answers_is_no_pass() -> None:
    """A port that is wrong in one of ten answers gets 16 right in 18 % of all cases."""
    right = np.ones((4, 4))
    decision = decide(SamplingPlan(0.10, 0.05, (4,)), pair(right, right))
    assert decision.verdict == "cannot-tell"
    assert decision.se == pytest.approx(math.sqrt(0.1 * 0.9 / 16))
    assert decide(SamplingPlan(0.10, 0.05, (8,)), pair(np.ones((4, 8)), np.ones((4, 8)))).verdict == "pass"


def sampling_error(p: float) -> float:
    """Four standard deviations of a share in RUNS runs."""
    return 4 * math.sqrt(p * (1 - p) / RUNS)
