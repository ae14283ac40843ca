"""The normal distribution of one variable, and of two correlated ones as in a test with two looks."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_STANDARD = NormalDist()
_FAR = 9.0  # beyond this a standard normal variable has no mass that float64 would notice here (1e-19)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(160)


def cdf(x: float) -> float:
    """P(Z <= x) of a standard normal Z."""
    return _STANDARD.cdf(x)


def quantile(p: float) -> float:
    """The x with P(Z <= x) = p."""
    return _STANDARD.inv_cdf(p)


def between_and_above(low: float, high: float, above: float, correlation: float) -> float:
    """P(low < X <= high and Y > above) of standard normal X and Y with this correlation, below 1.

    Integrates the density of X times P(Y > above | X) over X, by Gauss-Legendre quadrature.
    """
    low, high = max(low, -_FAR), min(high, _FAR)
    if low >= high:
        return 0.0
    x: NDArray[np.float64] = (high - low) / 2 * _NODES + (high + low) / 2
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    given = (above - correlation * x) / math.sqrt(1 - correlation**2)
    tail = np.array([cdf(-value) for value in given.tolist()])
    return float((high - low) / 2 * np.sum(_WEIGHTS * density * tail))
