"""Intervals by resampling whole documents: tokens of one document are not independent, documents are.

The percentile bootstrap of Efron; a statistic is a function of sums over documents, so a resample is a row of weights.
With D documents the interval is too narrow by about (D - 1) / D in variance; `min_documents` keeps that small.

Legend: D documents, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic over all documents, and where resamples of them put it."""

    value: float
    low: float
    high: float


def draw_weights(documents: int, resamples: int, seed: int) -> Numbers:
    """How often each resample holds each document, [R, D]; rows sum to D. The same seed draws the same."""
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(documents, np.full(documents, 1 / documents), size=resamples)
    return counts.astype(np.float64)


def interval(value: float, resampled: Numbers, confidence: float) -> Interval:
    """Percentiles of the resamples; those in which the statistic is not defined do not count.

    `value` is inside even where it is an extreme of the resamples.
    """
    known = resampled[np.isfinite(resampled)]
    if not len(known):
        return Interval(value, value, value)
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, min(float(low), value), max(float(high), value))


def none_seen(events_interval: Interval, tokens: float, confidence: float) -> Interval:
    """Widen the interval of a share of which no token was seen: resamples of nothing are nothing.

    The upper bound is where none in `tokens` has probability (1 - confidence) / 2; the "rule of three" at 90 %.
    """
    if events_interval.value > 0 or tokens == 0:
        return events_interval
    bound = 1 - ((1 - confidence) / 2) ** (1 / tokens)
    return Interval(0.0, 0.0, max(events_interval.high, float(bound)))
