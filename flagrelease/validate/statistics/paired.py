"""Compares two systems that answered the same items several times: difference of scores and its standard error.

Legend: n items, k repeats. An answer scores 1 or 0. All numbers are fractions, not points of 100.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]  # [n, k]


@dataclass(frozen=True, slots=True)
class Paired:
    """The difference that was seen, and how uncertain it is.

    Attributes:
        difference: D, mean of the chip less mean of the native side.
        se: SE_w, the standard error of D on these items: whether the port is different on this very exam.
        variance: v_w, mean over items and sides of p (1 - p), estimated without bias.
        native_run_sd, chip_run_sd: standard deviation of the score from repeat to repeat.
    """

    n: int
    k: int
    native: float
    chip: float
    difference: float
    se: float
    variance: float
    native_run_sd: float
    chip_run_sd: float


def pair(native: Scores, chip: Scores) -> Paired:
    """Compare two sides, each [n, k] with the same n and k, k >= 2.

    SE_w = sqrt(sum_i (s_native,i^2 + s_chip,i^2) / k) / n, where s^2 is the unbiased variance within an item. That some
    items are harder than others does not add to it, because both sides answer the same items.
    """
    if native.shape != chip.shape or native.ndim != 2 or native.shape[1] < 2:
        raise ValueError(f"scores of shapes {native.shape} and {chip.shape}")
    n, k = native.shape
    within = native.var(axis=1, ddof=1) + chip.var(axis=1, ddof=1)
    return Paired(
        n=n,
        k=k,
        native=float(native.mean()),
        chip=float(chip.mean()),
        difference=float(chip.mean() - native.mean()),
        se=math.sqrt(float(within.sum()) / k) / n,
        variance=float(within.mean()) / 2,
        native_run_sd=float(native.mean(axis=0).std(ddof=1)),
        chip_run_sd=float(chip.mean(axis=0).std(ddof=1)),
    )


def pair_draws(native: Scores, chip: Scores) -> Paired:
    """Compare two sides that answered each item once, both [n, 1], n >= 2, where the items are drawn by rule.

    SE = sqrt(sum_i (d_i - D)^2 / (n - 1) / n) with d_i the difference on item i. It covers the choice of items and the
    chance in the answers together, which one answer to an item cannot tell apart. `variance` is half of that of d_i, so
    that `standard_error` gives the same SE; there are no repeats whose scores could scatter.
    """
    if native.shape != chip.shape or native.ndim != 2 or native.shape[1] != 1 or len(native) < 2:
        raise ValueError(f"scores of shapes {native.shape} and {chip.shape}")
    differences = (chip - native)[:, 0]
    variance = float(differences.var(ddof=1)) / 2
    return Paired(
        n=len(native),
        k=1,
        native=float(native.mean()),
        chip=float(chip.mean()),
        difference=float(differences.mean()),
        se=standard_error(variance, len(native), 1),
        variance=variance,
        native_run_sd=0.0,
        chip_run_sd=0.0,
    )


def standard_error(variance: float, n: int, k: int) -> float:
    """The SE_w of D if v_w is `variance`: sqrt(2 v_w / (n k))."""
    return math.sqrt(2 * variance / (n * k))
