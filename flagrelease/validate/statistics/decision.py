"""The rule: a one-sided non-inferiority test with one or two looks, fixed before anything is run.

    pass        if D - z SE > -margin
    fail        if D + z SE < -margin
    cannot-tell otherwise

With two looks z is O'Brien and Fleming's: c / sqrt(t) at the first, which sees the share t of the information, and c at
the last, with c such that a port exactly `margin` worse passes at either look with probability alpha.

SE is the standard error within items, but never less than sqrt(margin (1 - margin) / (n k)): what it would be if the
native side were always right and the port `margin` worse on every item. Where nearly all answers are right, the error
that was seen is too small by chance, and without this floor such a port would pass too often. With it the level holds
in simulation: 0.05 to about 0.055 for exams as they are, up to 0.065 where the native side is right 99.5 % of the time.
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
    """The test. `margin` is a fraction; `looks` are the repeats at each look, one or two, increasing."""

    margin: float
    alpha: float
    looks: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what this rule is not made for."""
        if len(self.looks) not in (1, 2) or list(self.looks) != sorted(set(self.looks)):
            raise ValueError(f"looks {self.looks}: one, or two that increase")

    @property
    def critical(self) -> tuple[float, ...]:
        """z at each look."""
        if len(self.looks) == 1:
            return (normal.quantile(1 - self.alpha),)
        return obrien_fleming(self.alpha, self.looks[0] / self.looks[1])


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict at a look.

    Attributes:
        look: from 1.
        se: SE, the floor included.
        lower, upper: D -+ z SE.
        further_planned: repeats until the next look of the plan; 0 at the last.
        further_needed: repeats after which D and v_w as they are now would decide; None if none would, or none must.
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
    """The verdict on what was seen; the repeats must be those of a look.

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
    """v_w, the mean of both sides, where one is always right and the other wrong in the share `margin` of all."""
    return plan.margin * (1 - plan.margin) / 2


@cache
def obrien_fleming(alpha: float, fraction: float) -> tuple[float, float]:
    """Critical values of two looks, the first at `fraction` of the information, one-sided level `alpha`."""

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
    """Of the three verdicts, after the last look."""

    passes: float
    fails: float
    cannot_tell: float


def chances(plan: SamplingPlan, drop: float, variance: float, n: int) -> Chances:
    """How the rule as a whole ends for a port that is truly `drop` worse, where v_w is `variance`, on n items.

    By the normal approximation, with v_w not below what the floor of SE stands for.
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
