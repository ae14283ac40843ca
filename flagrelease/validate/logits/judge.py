"""From intervals to verdicts: inside the limits, outside them, across one of them, or limits that hold whatever comes.

A share is judged by the share of tokens that break it, so that "none seen" gets a bound and not certainty. A limit that
a port which knows nothing would hold, too, is not informative: that port gives every token the same probability, agrees
with no expert and leaves the streams at zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

from pydantic import JsonValue

from flagrelease.records.report import PartVerdict
from flagrelease.records.rules import LogitsLimits, LogitsRules
from flagrelease.validate.logits.bootstrap import Interval, Numbers, interval, none_seen
from flagrelease.validate.logits.sums import Sums

LABELS = {
    "mean_kl": "mean KL, nats",
    "above": "tokens with a large KL",
    "top1": "same most likely token",
    "top1_clear": "same most likely token where the reference is sure",
    "perplexity": "relative difference of perplexity",
    "ratio": "KL(native || port) / KL(native || oracle)",
    "outliers": "tokens that differ wildly where the reference is sure",
    "nonfinite": "tokens with NaN or infinity",
    "nll": "loss of log-probability on the native model's own texts, nats a token",
    "sampled_kl": "KL(native || port) estimated on those texts (k3), nats a token",
    "last_error": "relative error behind the last layer, median",
    "early_cosine": "cosine in the first half of the layers, lowest median",
    "late_cosine": "cosine in the second half of the layers, lowest median",
    "experts": "same experts, lowest mean of a layer",
}
# What a port that knows nothing gives where that does not depend on the vocabulary.
_BLIND = {
    "top1": 0.0, "top1_clear": 0.0, "last_error": 1.0, "early_cosine": 0.0, "late_cosine": 0.0, "experts": 0.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measure:
    """A statistic, its interval (the value itself where there is none) and its limits; `name` is one of `LABELS`."""

    name: str
    value: float
    low: float
    high: float
    at_least: float | None
    at_most: float | None
    verdict: PartVerdict

    def to_json(self) -> dict[str, JsonValue]:
        """For the report; a number that is not defined is null."""
        record = asdict(self) | {"label": LABELS[self.name]}
        return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in record.items()}

    def __str__(self) -> str:
        """The label, the value, and the limit that matters."""
        bounds = [f"at least {self.at_least:.4g}"] if self.at_least is not None else []
        bounds += [f"at most {self.at_most:.4g}"] if self.at_most is not None else []
        return f"{LABELS[self.name]} {self.value:.4g} ({self.low:.4g} to {self.high:.4g}; {' and '.join(bounds)})"


def judge(
    name: str,
    found: Interval,
    at_least: float | None = None,
    at_most: float | None = None,
    blind: float | None = None,
) -> Measure:
    """pass: the whole interval is inside. fail: all of it is beyond one limit. Otherwise cannot-tell.

    not-informative in place of the first and the last: not one token to judge by, or limits that hold `blind`, what a
    port that knows nothing gives (by default what it gives of a measure of this name).
    """
    low = -math.inf if at_least is None else at_least
    high = math.inf if at_most is None else at_most
    verdict: PartVerdict = "cannot-tell"
    if found.high < low or found.low > high:
        verdict = "fail"
    elif math.isnan(found.value) or low <= (_BLIND.get(name, math.nan) if blind is None else blind) <= high:
        verdict = "not-informative"
    elif low <= found.low and found.high <= high:
        verdict = "pass"
    return Measure(name, found.value, found.low, found.high, at_least, at_most, verdict)


def exactly(name: str, value: float, at_least: float | None = None, at_most: float | None = None) -> Measure:
    """Judge a number without an interval: a count, or a median of layers."""
    return judge(name, Interval(value, value, value), at_least, at_most)


class Judge:
    """Judges comparisons over the same documents with the same resamples `weights` [R, D]."""

    def __init__(self, rules: LogitsRules, weights: Numbers, vocabulary: int) -> None:
        """`rules` has confidence; each comparison brings its limits. `vocabulary`: how many tokens there are."""
        self._rules, self._weights = rules, weights
        self._uniform, self._perplexity = math.log(vocabulary), float(vocabulary)  # at most, of equal probabilities

    def measures(self, sums: Sums, limits: LogitsLimits, floor: float) -> list[Measure]:
        """What the limits decide. `floor`: mean KL of the noise floor."""
        tokens, clear = (float(sums.total.field(name)[0]) for name in ("tokens", "clear"))
        most = max(limits.mean_kl, (limits.floors or 0) * floor)
        made = [judge("mean_kl", self.spread(sums, lambda s: s.mean_kl), at_most=most, blind=self._uniform)]
        if limits.tail_kl is not None:
            above = none_seen(self.spread(sums, lambda s: s.above), tokens, self._rules.confidence)
            blind = float(self._uniform > limits.tail_kl)
            made.append(judge("above", above, at_most=limits.tail_share, blind=blind))
        if limits.top1 is not None:
            made.append(self._share("top1", sums, lambda s: s.top1, tokens, limits.top1))
        made.append(self._share("top1_clear", sums, lambda s: s.top1_clear, clear, limits.top1_clear))
        apart = self.spread(sums, lambda s: s.perplexity)
        blind = self._perplexity - 1
        return [*made, judge("perplexity", apart, -limits.perplexity, limits.perplexity, blind)]

    def ratio(self, port: Sums, oracle: Sums) -> Measure:
        """Both against the native run."""

        def of(port: Sums, oracle: Sums) -> Numbers:
            return port.mean_kl / oracle.mean_kl

        resampled = of(port.mixed(self._weights), oracle.mixed(self._weights))
        found = interval(float(of(port.total, oracle.total)[0]), resampled, self._rules.confidence)
        return judge("ratio", found, *self._rules.ratio)

    def spread(self, sums: Sums, statistic: Callable[[Sums], Numbers]) -> Interval:
        """A statistic with its interval."""
        resampled = statistic(sums.mixed(self._weights))
        return interval(float(statistic(sums.total)[0]), resampled, self._rules.confidence)

    def _share(
        self, name: str, sums: Sums, statistic: Callable[[Sums], Numbers], tokens: float, at_least: float
    ) -> Measure:
        """A share of tokens that agree."""
        odd = none_seen(self.spread(sums, lambda s: 1 - statistic(s)), tokens, self._rules.confidence)
        return judge(name, Interval(1 - odd.value, 1 - odd.high, 1 - odd.low), at_least)
