"""One comparison of the stage: the port against one run of the source, in one replay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from flagrelease.engine.numerics import Numerics
from flagrelease.records.rules import LogitsLimits, LogitsRules
from flagrelease.validate.logits.baseline import Baseline, DocumentRecord, Reference
from flagrelease.validate.logits.distribution import Figures
from flagrelease.validate.logits.judge import Judge, Measure, exactly
from flagrelease.validate.logits.plots import agreement_by_margin, by_document, kl_distribution
from flagrelease.validate.logits.replay import Replay
from flagrelease.validate.logits.sums import Sums, outliers, sum_up


@dataclass(frozen=True, slots=True)
class Comparison:
    """`measures` are judged: against limits if it `decides`, otherwise only for numbers. `floor`: mean KL in nats."""

    reference: Reference
    replay: Replay
    documents: Sequence[Figures]
    sums: Sums
    floor: float
    outliers: int
    decides: bool
    measures: tuple[Measure, ...]

    @property
    def name(self) -> str:
        """Such as oracle/prefill."""
        return f"{self.reference}/{self.replay}"

    @property
    def tokens(self) -> int:
        """Scored ones, those without numbers left out."""
        return int(self.sums.total.field("tokens")[0])

    @property
    def mean_kl(self) -> float:
        """Nats; NaN if no token had numbers."""
        return float(self.sums.total.mean_kl[0])

    @property
    def tail(self) -> float:
        """Probability that the reference gives, on average, to tokens that were not kept; NaN as above."""
        return float(self.sums.total.tail[0])

    def figures(self, documents: Sequence[DocumentRecord]) -> dict[str, JsonValue]:
        """For the report; `documents` are those that were compared. `kl`, `top1_by_margin`, `by_document`: see `plots`.
        `token_logp`: of the tokens that followed, mean absolute difference and the estimates k1 and k3 of KL.
        `perplexity`: relative difference.
        """
        total = self.sums.total
        return {
            "reference": self.reference,
            "replay": self.replay,
            "decides": self.decides,
            "tokens": self.tokens,
            "floor": _finite(self.floor),
            "mean_kl": _finite(self.mean_kl),
            "measures": [measure.to_json() for measure in self.measures],
            "kl": kl_distribution(self.documents),
            "top1_by_margin": agreement_by_margin(self.documents),
            "token_logp": {
                "mean_abs": _finite(float(total.distance[0])),
                "k1": _finite(float(total.k1[0])),
                "k3": _finite(float(total.k3[0])),
            },
            "perplexity": _finite(float(total.perplexity[0])),
            "outliers": self.outliers,
            "tail": _finite(self.tail),
            "by_document": by_document(documents, self.sums),
        }


def widening(numerics: Numerics, native_cost: float, rules: LogitsRules) -> float:
    """How much more mean KL a port may have because it rounds activations in its own way: 1 if it does not.

    `native_cost`: KL(native || oracle) in prefill, in nats.
    """
    if numerics.rounds != "stored":
        return 1.0
    share = next(share for name, share in rules.own_rounding.items() if name == numerics.name)
    return max(1.0, share * native_cost / rules.oracle.mean_kl)


def deciding_limits(numerics: Numerics, native_cost: float, rules: LogitsRules) -> dict[Reference, LogitsLimits]:
    """The limits that decide, by reference; a comparison with another reference only informs."""
    if numerics.rounds == "every":
        return {"native": rules.oracle.loosened(rules.rounded)}
    if numerics.rounds == "stored":
        return {"oracle": rules.oracle.widened(widening(numerics, native_cost, rules))}
    return {"oracle": rules.oracle, "native": rules.native}


def compare_replay(
    baseline: Baseline,
    reference: Reference,
    replay: Replay,
    documents: Sequence[Figures],
    rules: LogitsRules,
    judge: Judge,
    limits: LogitsLimits | None,
    *,
    alike: bool,
) -> Comparison:
    """Judge the figures of all documents of one replay.

    Outliers decide where port and reference compute alike (`alike`); elsewhere rounding alone can make some. Without
    `limits` nothing else decides but numbers that are none.
    """
    floor = float(floor_sums(baseline, replay, rules).total.mean_kl[0])
    sums = sum_up(documents, limits or rules.oracle)
    wild = sum(outliers(figures, rules) for figures in documents)
    measures = [exactly("nonfinite", sum(int((~figures.finite).sum()) for figures in documents), at_most=0)]
    if alike:
        measures.insert(0, exactly("outliers", wild, at_most=0))
    if limits is not None:
        measures = judge.measures(sums, limits, floor) + measures
    return Comparison(reference, replay, documents, sums, floor, wild, limits is not None, tuple(measures))


def floor_sums(baseline: Baseline, replay: Replay, rules: LogitsRules) -> Sums:
    """The oracle in other shapes against itself."""
    return _pair(baseline, "floor-oracle", replay, rules)


def oracle_sums(baseline: Baseline, replay: Replay, rules: LogitsRules) -> Sums:
    """The oracle against the native run: what rounding activations does."""
    return _pair(baseline, "oracle-native", replay, rules)


def _pair(baseline: Baseline, pair: str, replay: Replay, rules: LogitsRules) -> Sums:
    count = range(len(baseline.record.documents))
    return sum_up([baseline.figures(pair, number)[replay] for number in count], rules.oracle)


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
