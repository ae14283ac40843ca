"""From what a server told to the stage.

A measure of KL fails where the lower bound's interval is above its limit, whatever the server did not tell. No data of
short lists bounds KL from above (see bounds.py), so a pass rests on a stated inference: the bound divided by the share
that lists of this length show of the KL between the source's own two runs. In between it is cannot-tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import JsonValue

from flagrelease.engine.numerics import Numerics
from flagrelease.records.report import PartVerdict, Stage
from flagrelease.records.rules import LogitsLimits, LogitsRules
from flagrelease.validate.logits.baseline import Baseline, DocumentRecord, Reference
from flagrelease.validate.logits.bootstrap import draw_weights
from flagrelease.validate.logits.comparison import Comparison, compare_replay, deciding_limits, oracle_sums
from flagrelease.validate.logits.distribution import Figures
from flagrelease.validate.logits.judge import Judge, Measure
from flagrelease.validate.logits.served.evaluation import ServedDocument, inferred
from flagrelease.validate.logits.served.figures import Costs, Refused, Served, ServedBounds
from flagrelease.validate.logits.served.ways import Way
from flagrelease.validate.logits.verdict import describe_baseline, describe_documents, worst

_OF_KL = ("mean_kl", "above")


@dataclass(frozen=True, slots=True)
class ServedEvidence:
    """What a server told.

    Attributes:
        numbers: of the documents that were compared, in order; `refused` and `cut` name others.
        runs: each of these documents against each run of the source.
        shares: what lists of this length show, by run (`evaluation.visible_share`).
    """

    baseline: Baseline
    where: str
    way: Way
    numbers: tuple[int, ...]
    runs: Mapping[Reference, Sequence[ServedDocument]]
    shares: Mapping[Reference, float]
    refused: tuple[Refused, ...]
    cut: tuple[str, ...]
    costs: Costs
    numerics: Numerics


def decide_served(evidence: ServedEvidence, rules: LogitsRules) -> Stage:
    """The stage."""
    records = [evidence.baseline.record.documents[number] for number in evidence.numbers]
    if not records:
        return _nothing(evidence)
    judge = Judge(rules, draw_weights(len(records), rules.resamples, rules.seed), evidence.baseline.record.vocabulary)
    cost = float(oracle_sums(evidence.baseline, "prefill", rules).total.mean_kl[0])
    limits = deciding_limits(evidence.numerics, cost, rules)
    comparisons = {
        reference: _compare(evidence, reference, rules, judge, limits.get(reference)) for reference in evidence.runs
    }
    named = {f"{r}/served: {m.name}": m for r, c in comparisons.items() for m in c.measures}
    short = _too_short(comparisons, len(records), rules)
    verdict = worst(named.values(), short)
    broken: list[JsonValue] = [name for name, measure in named.items() if measure.verdict == "fail"]
    bounds = tuple(_bounds(evidence, reference, comparison) for reference, comparison in comparisons.items())
    served = _served(evidence, bounds)
    return Stage(
        name="logits",
        verdict=verdict,
        detail=_detail(verdict, named, short, served, comparisons),
        proves=_proves(verdict, evidence, comparisons),
        leaves_open=_leaves_open(evidence, served),
        figures={
            "documents": describe_documents(evidence.baseline),
            "baseline": describe_baseline(evidence.baseline),
            "numerics": evidence.numerics.name,
            "confidence": rules.confidence,
            "comparisons": [_shown(comparison, records) for comparison in comparisons.values()],
            "ratio": {},
            "broken": broken,
            "served": served.model_dump(mode="json"),
        },
    )


def _compare(
    evidence: ServedEvidence, reference: Reference, rules: LogitsRules, judge: Judge, limits: LogitsLimits | None
) -> Comparison:
    documents = [document.figures for document in evidence.runs[reference]]
    share = evidence.shares[reference]
    alike = reference == evidence.numerics.reference and evidence.numerics.rounds != "stored"

    def compare(figures: Sequence[Figures]) -> Comparison:
        return compare_replay(evidence.baseline, reference, "prefill", figures, rules, judge, limits, alike=alike)

    shown = compare(documents)
    whole = compare(inferred(documents, share)) if share >= rules.served.least_share else None
    likely = {} if whole is None else {measure.name: measure for measure in whole.measures}
    return replace(shown, measures=tuple(_between(m, likely.get(m.name)) for m in shown.measures))


def _between(least: Measure, likely: Measure | None) -> Measure:
    """A measure of KL from its bound and from what that suggests of the whole; any other measure as it is."""
    if least.name not in _OF_KL:
        return least
    verdict = least.verdict
    if verdict == "pass":
        verdict = "pass" if likely is not None and likely.verdict == "pass" else "cannot-tell"
    return replace(least, high=math.inf if likely is None else likely.high, verdict=verdict)


def _too_short(comparisons: Mapping[Reference, Comparison], documents: int, rules: LogitsRules) -> list[str]:
    found = [] if documents >= rules.min_documents else [f"{documents} documents of {rules.min_documents}"]
    tokens = min(comparison.tokens for comparison in comparisons.values())
    return found if tokens >= rules.min_tokens else [*found, f"{tokens} tokens of {rules.min_tokens}"]


def _bounds(evidence: ServedEvidence, reference: Reference, comparison: Comparison) -> ServedBounds:
    bounds = [document.bounds for document in evidence.runs[reference]]
    share = evidence.shares[reference]
    known = share > 0
    return ServedBounds(
        reference=reference,
        shown=comparison.mean_kl,
        inferred=comparison.mean_kl / share if known else None,
        share=share if known else None,
        bounded=_mean([np.isfinite(each.upper) for each in bounds]),
        least_variation=_mean([each.least_variation for each in bounds]),
        most_variation=_mean([each.most_variation for each in bounds]),
        unlisted=_mean([each.unlisted for each in bounds]),
    )


def _mean(parts: Sequence[np.ndarray]) -> float:
    return float(np.concatenate(parts).mean())


def _served(evidence: ServedEvidence, bounds: tuple[ServedBounds, ...]) -> Served:
    return Served(
        way=evidence.way.name,
        alternatives=evidence.way.alternatives,
        documents=len(evidence.numbers),
        refused=evidence.refused,
        cut=evidence.cut,
        bounds=bounds,
        costs=evidence.costs,
    )


def _shown(comparison: Comparison, records: Sequence[DocumentRecord]) -> dict[str, JsonValue]:
    return comparison.figures(records) | {"replay": "served"}


def _nothing(evidence: ServedEvidence) -> Stage:
    first = evidence.refused[0]
    return Stage(
        name="logits",
        verdict="cannot-tell",
        detail=f"Cannot tell: no document could be compared. {first.name}: {first.reason}.",
        leaves_open=("Everything: the server did not score what the baseline holds.",),
        figures={"comparisons": [], "ratio": {}, "served": _served(evidence, ()).model_dump(mode="json")},
    )


def _detail(
    verdict: PartVerdict,
    named: Mapping[str, Measure],
    short: Sequence[str],
    served: Served,
    comparisons: Mapping[Reference, Comparison],
) -> str:
    refused = served.refused
    without = f" Not compared: {len(refused)}, the first is {refused[0].name}: {refused[0].reason}." if refused else ""
    if verdict == "pass":
        tokens = next(iter(comparisons.values())).tokens
        return f"Within every limit on {tokens} served tokens, {served.alternatives} alternatives each.{without}"
    odd = [f"{name.split(':')[0]}: {measure}" for name, measure in named.items() if measure.verdict == verdict]
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    if verdict == "fail":
        return f"Outside the limits: {'; '.join(odd[:3])}{more}.{without}"
    if verdict == "not-informative":
        return f"Not informative: a port that knows nothing would hold {'; '.join(odd[:3])}{more}, too.{without}"
    parts = [f"too little was scored ({', '.join(short)})"] if short else []
    parts += [f"across a limit, or not told by so few alternatives ({'; '.join(odd[:3])}{more})"] if odd else []
    return f"Cannot tell: {' and '.join(parts)}.{without}"


def _proves(
    verdict: PartVerdict, evidence: ServedEvidence, comparisons: Mapping[Reference, Comparison]
) -> tuple[str, ...]:
    if verdict != "pass":
        return ()
    main = evidence.numerics.reference
    comparison, share = comparisons[main], evidence.shares[main]
    run = "BF16" if main == "oracle" else "native"
    return (
        f"Over {comparison.tokens} tokens of prompts, what {evidence.where} serves is the source's {run} run as far as "
        f"{evidence.way.alternatives} alternatives show: mean KL at least {comparison.mean_kl:.2g} nats, and "
        f"{comparison.mean_kl / share:.2g} if the server differs as rounding does, of which such lists show "
        f"{share:.0%}.",
    )


def _leaves_open(evidence: ServedEvidence, served: Served) -> tuple[str, ...]:
    main = next(each for each in served.bounds if each.reference == evidence.numerics.reference)
    said = [
        "Equal distributions on given texts are not equal answers: benchmarks measure those.",
        "Decoding: a server scores prompts, which go through prefill. Tokens that it writes one by one cannot be given "
        "to it, so a fault of the cache or of captured steps shows in the stages invariance, benchmarks and behaviour.",
        f"What the lists leave out: the reference gives {main.unlisted:.1%} of its probability to tokens that were not "
        f"listed, and {1 - main.bounded:.0%} of the tokens have no upper bound of KL. The mean total variation is "
        f"between {main.least_variation:.2g} and {main.most_variation:.2g}.",
        "Layers: no interface shows what is inside the model.",
        "That the endpoint served this very release: its log-probabilities agree with it, which nothing else shows.",
    ]
    if served.cut:
        said.append(f"The ends of documents beyond the server's context: {', '.join(served.cut)}.")
    if evidence.numerics.rounds != "none":
        said.append("Rounding of activations hides small faults; the weights were proved apart, in their own stage.")
    return tuple(said)
