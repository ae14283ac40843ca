"""Two rates of two models, and the interval of their difference.

Newcombe's interval of a difference of proportions (1998, method 10): the Wilson limits of each, squared and added. It
holds at rates of 0, where the usual one has no width. It takes answers as independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flagrelease.records.report import PartVerdict, Verdict
from flagrelease.validate.statistics import normal
from flagrelease.validate.statistics.intervals import wilson


@dataclass(frozen=True, slots=True)
class Excess:
    """How much more often the port does it, as fractions: difference, and its interval of 1 - 2 alpha."""

    difference: float
    low: float
    high: float

    def verdict(self, margin: float) -> Verdict:
        """pass if the whole interval is below the margin, fail if it is above, else cannot-tell."""
        return "pass" if self.high < margin else "fail" if self.low > margin else "cannot-tell"


def excess(port: tuple[int, int], native: tuple[int, int], alpha: float) -> Excess:
    """Of two (how often, of how many), with one-sided level `alpha` at either end."""
    (port_low, port_rate, port_high), (low, rate, high) = _wilson(*port, alpha), _wilson(*native, alpha)
    difference = port_rate - rate
    return Excess(
        difference,
        difference - math.hypot(port_rate - port_low, high - rate),
        difference + math.hypot(port_high - port_rate, rate - low),
    )


def judge_rate(port: tuple[int, int], native: tuple[int, int], margin: float, alpha: float) -> PartVerdict:
    """The verdict on two (how often, of how many).

    `not-informative` where not even a port that does it in every answer would have failed: the native model does it
    nearly always itself, or the margin is too wide for so few answers. A pass would then say nothing.
    """
    worst = excess((port[1], port[1]), native, alpha)
    return excess(port, native, alpha).verdict(margin) if worst.verdict(margin) == "fail" else "not-informative"


def needed_for_zero(margin: float, alpha: float) -> int:
    """Answers of each side with which the interval is inside `margin` where neither side ever does it."""
    z = normal.quantile(1 - alpha)
    return math.floor(z * z * (1 - margin) / margin) + 1


def _wilson(count: int, n: int, alpha: float) -> tuple[float, float, float]:
    low, high = wilson(count / n, n, 1 - 2 * alpha)
    return low, count / n, high
