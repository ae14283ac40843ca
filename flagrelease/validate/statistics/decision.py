"""The rule: a one-sided non-inferiority test with one or two looks, fixed before anything is run.

    pass        if D - z SE > -margin
    fail        if D + z SE < -margin
    cannot-tell otherwise

With two looks, z follows O'Brien and Fleming: c / sqrt(t) at the first, where t is the share of the information seen so
far, and c at the last. c is chosen so that a port exactly `margin` worse passes at either look with probability alpha.

SE is the standard error within items, with a floor of sqrt(margin (1 - margin) / (n k)): the value if the native side
were always right and the port were worse by `margin` on every item. Where nearly all answers are right, the observed
error can be too small by chance, and without the floor a port that is worse by `margin` would pass too often. In
simulations with the floor and alpha = 0.05, such a port passes in 5 to about 5.5 % of the cases on exams as they are,
and in up to 6.5 % where the native side is right 99.5 % of the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

from flagrelease.validate.statistics import normal
from flagrelease.validate.statistics.paired import Paired, standard_error

Verdict = Literal["pass", "fail", "cannot-tell"]


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """The plan of the test. `margin` is a fraction; `looks` are the repeats at each of one or two looks, increasing."""

    margin: float
    alpha: float
    looks: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse plans that the rule is not made for."""
        if len(self.looks) not in (1, 2) or list(self.looks) != sorted(set(self.looks)):
            raise ValueError(f"looks {self.looks}: one, or two that increase")

    @property
    def critical(self) -> tuple[float, ...]:
        """The critical value z at each look."""
        if len(self.looks) == 1:
            return (normal.quantile(1 - self.alpha),)
        return obrien_fleming(self.alpha, self.looks[0] / self.looks[1])


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict at a look.

    Attributes:
        look: its number, from 1.
        se: SE, the floor included.
        lower, upper: D -+ z SE.
        further_planned: how many more repeats the next look of the plan needs; 0 at the last.
        further_needed: how many more repeats would decide if D and v_w stayed as they are; None if no number would, or
            if it is decided.
    """

    verdict: Verdict
    look: int
    critical: float
    se: float
    lower: float
    upper: float
    further_planned: int
    further_needed: int | None


def decide(plan: SamplingPlan, seen: Paired) -> Decision:
    """Decide on what was seen so far; the number of repeats must be that of a look.

    Raises:
        ValueError: they are not.
    """
    if seen.k not in plan.looks:
        raise ValueError(f"{seen.k} repeats: the plan looks at {plan.looks}")
    at = plan.looks.index(seen.k)
    z, se = plan.critical[at], max(seen.se, standard_error(_least_variance(plan), seen.n, seen.k))
    lower, upper = seen.difference - z * se, seen.difference + z * se
    verdict: Verdict = "pass" if lower > -plan.margin else "fail" if upper < -plan.margin else "cannot-tell"
    planned = plan.looks[-1] - seen.k if verdict == "cannot-tell" else 0
    distance = abs(seen.difference + plan.margin)
    needed = None
    if verdict == "cannot-tell" and distance > 0:
        needed = math.floor(seen.k * (z * se / distance) ** 2) + 1 - seen.k
    return Decision(verdict, at + 1, z, se, lower, upper, planned, needed)


def _least_variance(plan: SamplingPlan) -> float:
    """v_w, the mean of both sides, if one is always right and the other is wrong in the share `margin` of all."""
    return plan.margin * (1 - plan.margin) / 2


@cache
def obrien_fleming(alpha: float, fraction: float) -> tuple[float, float]:
    """The critical values of two looks, the first at `fraction` of the information, for the one-sided level `alpha`."""

    def error(c: float) -> float:
        first = c / math.sqrt(fraction)
        return normal.cdf(-first) + normal.between_and_above(-math.inf, first, c, math.sqrt(fraction))

    low, high = normal.quantile(1 - alpha), normal.quantile(1 - alpha / 2)  # Bonferroni's is surely too strict
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (middle, high) if error(middle) > alpha else (low, middle)
    return high / math.sqrt(fraction), high


@dataclass(frozen=True, slots=True)
class Chances:
    """The probabilities of the three verdicts after the last look."""

    passes: float
    fails: float
    cannot_tell: float


def chances(plan: SamplingPlan, drop: float, variance: float, n: int) -> Chances:
    """The probability of each verdict for a port that is truly `drop` worse, on n items whose v_w is `variance`.

    Uses the normal approximation; v_w is at least the value that the floor of SE stands for.
    """
    variance = max(variance, _least_variance(plan))
    shifts = [(plan.margin - drop) / standard_error(variance, n, k) for k in plan.looks]
    z = plan.critical
    passes, fails = normal.cdf(shifts[0] - z[0]), normal.cdf(-z[0] - shifts[0])
    if len(plan.looks) == 2:
        within = -z[0] - shifts[0], z[0] - shifts[0]
        mirrored = -z[0] + shifts[0], z[0] + shifts[0]
        correlation = math.sqrt(plan.looks[0] / plan.looks[1])
        passes += normal.between_and_above(*within, z[1] - shifts[1], correlation)
        fails += normal.between_and_above(*mirrored, z[1] + shifts[1], correlation)
    return Chances(passes, fails, 1 - passes - fails)
