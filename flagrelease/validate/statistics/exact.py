"""Exact tests of whether there is any difference. Beside a benchmark's rule they are reported and decide nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flagrelease.validate.statistics.paired import Scores


def mcnemar(only_native: int, only_chip: int) -> float:
    """The two-sided p of the exact McNemar test, from the numbers of items that only one side solved."""
    discordant = only_native + only_chip
    tail: int = sum(math.comb(discordant, i) for i in range(min(only_native, only_chip) + 1))
    return min(1.0, 2 * tail / (1 << discordant))


def only_lost(lost: int, gained: int) -> float:
    """The one-sided p of the sign test: of so many items that one side alone solved, as few or fewer fall to the chip.

    Exact: where both sides are equally good, each such item falls to either with probability 1/2.
    """
    discordant = lost + gained
    tail: int = sum(math.comb(discordant, i) for i in range(gained + 1))
    return tail / (1 << discordant)


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which hypotheses fall, so that with probability `alpha` at most a true one is among them (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    falls = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > alpha / (len(p_values) - rank):
            break
        falls[i] = True
    return falls


def permutation(native: Scores, chip: Scores) -> float:
    """Two-sided p of the permutation test of D, which exchanges answers between the sides of an item; both [n, k].

    It is exact: if s of the 2k answers to an item are right, the number that falls to the chip under the null
    hypothesis is hypergeometric, and the distribution of the sum over items is a convolution.
    """
    k = native.shape[1]
    right = (native.sum(axis=1) + chip.sum(axis=1)).astype(int)
    total: NDArray[np.float64] = np.ones(1)
    for s in right.tolist():
        total = np.convolve(total, _hypergeometric(s, k))
    # `total` is over the chip's right answers, from the fewest possible
    fewest = int(np.maximum(0, right - k).sum())
    counts = fewest + np.arange(len(total))
    distance = np.abs(2 * counts - right.sum())
    seen = abs(2 * int(chip.sum()) - int(right.sum()))
    return min(1.0, float(total[distance >= seen].sum()))


def _hypergeometric(right: int, k: int) -> NDArray[np.float64]:
    """P(x of k drawn are right) for x from max(0, right - k) to min(k, right), out of 2k of which `right` are."""
    ways = [math.comb(right, x) * math.comb(2 * k - right, k - x) for x in range(max(0, right - k), min(k, right) + 1)]
    return np.array([way / math.comb(2 * k, k) for way in ways])
