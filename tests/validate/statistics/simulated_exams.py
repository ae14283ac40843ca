"""Exams drawn from a model of items, thousands at once: the ground truth of the tests of the rule.

`python tests/validate/statistics/simulated_exams.py` prints the table of docs/validation-benchmarks.md (a minute).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from flagrelease.validate.statistics.decision import SamplingPlan, decide
from flagrelease.validate.statistics.paired import Paired

Floats = NDArray[np.float64]


def items(n: int, mean: float, variance: float, rng: np.random.Generator) -> Floats:
    """P(right) of n items: a U-shaped beta distribution with this mean and this mean of p (1 - p)."""
    total = variance / (mean * (1 - mean) - variance)
    p = rng.beta(mean * total, (1 - mean) * total, n).clip(1e-9, 1 - 1e-9)
    for _ in range(60):  # the drawn items, and not only their distribution, have the wanted variance
        p = shift(p, p.mean() - mean)
        logit = np.log(p / (1 - p)) * math.sqrt((p * (1 - p)).mean() / variance)
        p = 1 / (1 + np.exp(-logit))
    assert abs(p.mean() - mean) < 1e-4
    assert abs((p * (1 - p)).mean() - variance) < 1e-4
    return p


def shift(p: Floats, drop: float) -> Floats:
    """The same items for a system that is `drop` worse on average, by one shift of all logits."""
    logit, low, high = np.log(p / (1 - p)), -60.0, 60.0
    for _ in range(80):
        middle = (low + high) / 2
        worse = 1 / (1 + np.exp(-(logit - middle)))
        low, high = (middle, high) if worse.mean() > p.mean() - drop else (low, middle)
    return 1 / (1 + np.exp(-(logit - high)))


def lose(p: Floats, drop: float) -> Floats:
    """The same items for a system that is `drop` worse on average because it cannot do some of them at all."""
    worse, left = p.copy(), drop * len(p)
    for i in np.argsort(-p):
        taken = min(left, worse[i])
        worse[i] -= taken
        left -= taken
    return worse


def pairs(
    native: Floats, chip: Floats, looks: tuple[int, ...], runs: int, rng: np.random.Generator
) -> list[list[Paired]]:
    """Per run what is seen at each look: [runs][looks]."""
    counts = [[np.zeros((runs, len(native))) for _ in looks] for _ in range(2)]
    for side, p in enumerate((native, chip)):
        before, so_far = 0, np.zeros((runs, len(native)))
        for at, k in enumerate(looks):
            so_far = so_far + rng.binomial(k - before, p, (runs, len(p)))
            counts[side][at], before = so_far, k
    seen = [_paired(counts[0][at], counts[1][at], k) for at, k in enumerate(looks)]
    return [list(run) for run in zip(*seen, strict=True)]


def _paired(native: Floats, chip: Floats, k: int) -> list[Paired]:
    n = native.shape[1]
    within = sum((right / k) * (1 - right / k) * k / (k - 1) for right in (native, chip))
    means = native.mean(axis=1) / k, chip.mean(axis=1) / k
    errors = np.sqrt(within.sum(axis=1) / k) / n  # type: ignore[union-attr]
    return [
        Paired(n, k, float(a), float(b), float(b - a), float(se), 0.0, 0.0, 0.0)
        for a, b, se in zip(*means, errors, strict=True)
    ]


def shares(plan: SamplingPlan, runs: list[list[Paired]]) -> dict[str, float]:
    """How often the rule ends with each verdict, a later look being taken only where the earlier did not decide."""
    ends = {"pass": 0, "fail": 0, "cannot-tell": 0}
    for run in runs:
        for seen in run:
            verdict = decide(plan, seen).verdict
            if verdict != "cannot-tell":
                break
        ends[verdict] += 1
    return {name: count / len(runs) for name, count in ends.items()}


def main() -> None:
    """Size and power of the rule as it is run."""
    print(
        "| n | score | v_w | margin | looks | passes: equal | worse by the margin | the same, on few items | by twice |"
    )
    for n, mean, variance, margin, looks in TABLE:
        rng = np.random.default_rng(1)
        p, plan = items(n, mean, variance, rng), SamplingPlan(margin, 0.05, looks)
        chips = (p, shift(p, margin), lose(p, margin), shift(p, 2 * margin))
        passed = [shares(plan, pairs(p, chip, looks, 20_000, rng))["pass"] for chip in chips]
        rates = " | ".join(f"{share:.3f}" for share in passed)
        print(f"| {n} | {mean:.2f} | {variance} | {100 * margin:g} | {', '.join(map(str, looks))} | {rates} |")


TABLE = [
    (198, 0.88, 0.04, 0.02, (8,)),
    (198, 0.88, 0.04, 0.02, (8, 16)),
    (198, 0.70, 0.10, 0.03, (8,)),
    (198, 0.70, 0.10, 0.03, (8, 16)),
    (30, 0.90, 0.02, 0.0333, (32,)),
    (30, 0.73, 0.055, 0.0333, (32,)),
    (30, 0.73, 0.055, 0.0333, (32, 64)),
]

if __name__ == "__main__":
    main()
