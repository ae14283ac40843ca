"""How many experts a batch takes, if every choice is equally likely.

Legend: E experts, E / R of them on each of R ranks; k that a token takes; d different ones that all tokens take.
"""

from __future__ import annotations

from functools import reduce
from math import comb
from typing import Any

import numpy as np

Vector = np.ndarray[Any, np.dtype[np.float64]]


def busiest(experts: int, ranks: int, k: int, tokens: int) -> float:
    """The mean number of different experts taken on the rank that has most of them."""
    return float(_taken(experts, k, tokens) @ _most(experts, ranks))


def _taken(experts: int, k: int, tokens: int) -> Vector:
    """How likely it is that the tokens take d different experts: [E + 1]."""
    # Of a token's k so many are new, when d are taken already: hypergeometric.
    new = [
        np.array([comb(experts - d, n) * comb(d, k - n) / comb(experts, k) for d in range(experts + 1)])
        for n in range(k + 1)
    ]
    likely = np.zeros(experts + 1)
    likely[0] = 1
    for _ in range(tokens):
        likely = np.sum([np.pad(likely * odds, (n, 0))[: experts + 1] for n, odds in enumerate(new)], axis=0)
    return likely


def _most(experts: int, ranks: int) -> Vector:
    """The mean of the largest number on one rank, of any d experts: [E + 1].

    It is the sum, over every limit, of how likely it is that a rank has more. All d experts being equally likely, that
    is counting: of the ways to take d from E, those that take at most the limit from each rank are coefficient d of
    (sum over n up to the limit of (E/R choose n) x^n)^R.
    """
    own = experts // ranks
    on_one = np.array([float(comb(own, n)) for n in range(own + 1)])
    anywhere = np.array([float(comb(experts, d)) for d in range(experts + 1)])
    mean = np.zeros(experts + 1)
    for limit in range(own):
        within = reduce(np.convolve, [on_one[: limit + 1]] * ranks)
        mean += 1 - np.pad(within, (0, experts + 1 - len(within))) / anywhere
    return mean
