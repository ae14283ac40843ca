"""A comparison as sums by document: what every statistic, and every resample of it, is computed from.

Legend: D documents (or resamples), F fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagrelease.records.rules import LogitsLimits, LogitsRules
from flagrelease.validate.logits.distribution import Figures

Numbers = NDArray[np.float64]
FIELDS = (
    "tokens", "kl", "above", "agree", "clear", "clear_agree", "reference", "tested", "distance", "k3", "tail",
)  # fmt: skip
MARGINS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Sums:
    """`table` [D, F], a row for each document, over its finite tokens."""

    table: Numbers

    def field(self, name: str) -> Numbers:
        """One column [D]."""
        column: Numbers = self.table[:, FIELDS.index(name)]
        return column

    def mixed(self, weights: Numbers) -> Sums:
        """Rows mixed by `weights` [R, D]: the sums of R resamples."""
        return Sums(weights @ self.table)

    @property
    def total(self) -> Sums:
        """One row: all documents."""
        return Sums(self.table.sum(0, keepdims=True))

    # Statistics, one number for each row. Without tokens a ratio is NaN.

    @property
    def mean_kl(self) -> Numbers:
        """Nats."""
        return self._share("kl", "tokens")

    @property
    def above(self) -> Numbers:
        """Share of tokens whose KL is above the limits' `tail_kl`."""
        return self._share("above", "tokens")

    @property
    def top1(self) -> Numbers:
        """Share of tokens with the same most likely token."""
        return self._share("agree", "tokens")

    @property
    def top1_clear(self) -> Numbers:
        """The same where the reference's margin is above the limits'."""
        return self._share("clear_agree", "clear")

    @property
    def perplexity(self) -> Numbers:
        """Relative difference of perplexity, tested over reference, minus 1."""
        relative: Numbers = np.expm1(self._share("reference", "tokens") - self._share("tested", "tokens"))
        return relative

    @property
    def distance(self) -> Numbers:
        """Mean absolute difference of the log-probability of the token that followed."""
        return self._share("distance", "tokens")

    @property
    def k1(self) -> Numbers:
        """Mean of log p - log q over the tokens that followed: estimates KL if the reference had sampled them."""
        return self._share("reference", "tokens") - self._share("tested", "tokens")

    @property
    def k3(self) -> Numbers:
        """Mean of r - 1 - log r, r = q / p: the same estimate, never negative."""
        return self._share("k3", "tokens")

    @property
    def tail(self) -> Numbers:
        """Mean probability that the reference gives to tokens that were not kept."""
        return self._share("tail", "tokens")

    def _share(self, part: str, whole: str) -> Numbers:
        count = self.field(whole)
        return np.asarray(np.divide(self.field(part), count, out=np.full(len(count), np.nan), where=count > 0))


def sum_up(documents: Sequence[Figures], limits: LogitsLimits) -> Sums:
    """Figures of each document's tokens to sums."""
    return Sums(np.array([_row(figures, limits) for figures in documents]))


def _row(figures: Figures, limits: LogitsLimits) -> list[float]:
    real = figures.finite
    kl, agree = figures.kl[real], figures.agree[real]
    clear = figures.margin[real] > limits.margin
    reference, tested = (x[real].astype(np.float64) for x in (figures.reference, figures.tested))
    gain = tested - reference  # log r
    sums = {
        "tokens": real.sum(),
        "kl": kl.sum(),
        "above": 0 if limits.tail_kl is None else (kl > limits.tail_kl).sum(),
        "agree": agree.sum(),
        "clear": clear.sum(),
        "clear_agree": (agree & clear).sum(),
        "reference": reference.sum(),
        "tested": tested.sum(),
        "distance": np.abs(gain).sum(),
        "k3": (np.expm1(gain) - gain).sum(),
        "tail": figures.tail[real].astype(np.float64).sum(),
    }
    return [float(sums[name]) for name in FIELDS]


def outliers(figures: Figures, rules: LogitsRules) -> int:
    """Tokens whose log-probability differs by more than the rules allow where the reference is sure."""
    apart = np.abs(figures.tested.astype(np.float64) - figures.reference)
    return int(((apart > rules.outlier_logp) & (figures.margin > rules.outlier_margin) & figures.finite).sum())
