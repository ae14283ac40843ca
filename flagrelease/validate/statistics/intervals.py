"""Intervals that also cover the choice of items: how a score or difference might come out on another such exam."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from flagrelease.validate.statistics import normal

_RESAMPLES = 9999


def wilson(mean: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval for a proportion over n items.

    For means of several answers to each item it is too wide rather than too narrow: a mean varies less than one
    answer. It does not shrink to a point if every answer is right.
    """
    z = normal.quantile((1 + confidence) / 2)
    middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return min(mean, max(0.0, middle - half)), max(mean, min(1.0, middle + half))


def bootstrap_mean(values: NDArray[np.float64], confidence: float, seed: int) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap interval (Efron 1987) for the mean of `values` [n], n >= 2."""
    n, mean = len(values), float(values.mean())
    if np.ptp(values) == 0:
        return mean, mean
    rng = np.random.default_rng(seed)
    means = np.sort(values[rng.integers(0, n, (_RESAMPLES, n))].mean(axis=1))
    below = (np.sum(means < mean) + np.sum(means <= mean)) / (2 * _RESAMPLES)
    bias = normal.quantile(min(max(float(below), 1 / _RESAMPLES), 1 - 1 / _RESAMPLES))
    away = values - mean  # n - 1 times what the mean loses when an item is left out
    acceleration = float((away**3).sum() / (6 * (away**2).sum() ** 1.5))
    ends = []
    for level in ((1 - confidence) / 2, (1 + confidence) / 2):
        shifted = bias + normal.quantile(level)
        ends.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(means, ends).tolist()
    return low, high
