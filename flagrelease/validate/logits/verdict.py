"""From all that was measured to the stage: verdict, sentences, figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from flagrelease.engine.numerics import Numerics
from flagrelease.records.report import PartVerdict, Stage, together
from flagrelease.records.rules import LayerLimits, LogitsRules
from flagrelease.validate.logits.baseline import Baseline, Reference
from flagrelease.validate.logits.bootstrap import draw_weights
from flagrelease.validate.logits.comparison import (
    Comparison,
    compare_replay,
    deciding_limits,
    oracle_sums,
    widening,
)
from flagrelease.validate.logits.judge import Judge, Measure
from flagrelease.validate.logits.layer_verdict import LayerVerdict, judge_layers, side_by_side
from flagrelease.validate.logits.localise import Errors, ErrorStep
from flagrelease.validate.logits.replay import REPLAYS, FiguresRun


@dataclass(frozen=True, slots=True)
class VerdictEvidence:
    """What the port's run left: figures against each run of the source, layers' errors if asked for, by document."""

    baseline: Baseline
    runs: dict[Reference, list[FiguresRun]]
    errors: list[Errors] | None
    numerics: Numerics

    def native_cost(self, rules: LogitsRules) -> float:
        """KL(native || oracle) in prefill, in nats."""
        return float(oracle_sums(self.baseline, "prefill", rules).total.mean_kl[0])


def decide(evidence: VerdictEvidence, rules: LogitsRules) -> Stage:
    """The stage."""
    count = len(evidence.baseline.record.documents)
    judge = Judge(rules, draw_weights(count, rules.resamples, rules.seed), evidence.baseline.record.vocabulary)
    limits = deciding_limits(evidence.numerics, evidence.native_cost(rules), rules)
    main = evidence.numerics.reference
    comparisons = [
        compare_replay(
            evidence.baseline,
            reference,
            replay,
            [run[replay] for run in runs],
            rules,
            judge,
            limits.get(reference),
            alike=reference == main and evidence.numerics.rounds != "stored",
        )
        for reference, runs in evidence.runs.items()
        for replay in REPLAYS
    ]
    named = {f"{c.name}: {measure.name}": measure for c in comparisons for measure in c.measures}
    ratios: dict[str, Measure] = {}
    if evidence.numerics.rounds == "none":
        native = {c.replay: c.sums for c in comparisons if c.reference == "native"}
        ratios = {r: judge.ratio(native[r], oracle_sums(evidence.baseline, r, rules)) for r in REPLAYS}
        named |= {f"native/{replay}: ratio": measure for replay, measure in ratios.items()}
    layers = _layers(evidence, rules)
    if layers is not None:
        named |= {f"layers: {measure.name}": measure for measure in layers.measures}
    step = None if layers is None else layers.step
    short = _too_short(comparisons, count, rules)
    verdict = worst(named.values(), short)
    broken: list[JsonValue] = [name for name, measure in named.items() if measure.verdict == "fail"]
    return Stage(
        name="logits",
        verdict=verdict,
        detail=_detail(verdict, named, short, comparisons, step),
        proves=_proves(verdict, comparisons, evidence, step),
        leaves_open=_leaves_open(comparisons, evidence, rules, step),
        figures={
            "documents": describe_documents(evidence.baseline),
            "baseline": describe_baseline(evidence.baseline),
            "numerics": evidence.numerics.name,
            "confidence": rules.confidence,
            "comparisons": [comparison.figures(evidence.baseline.record.documents) for comparison in comparisons],
            "ratio": {replay: measure.to_json() for replay, measure in ratios.items()},
            "broken": broken,
            **({} if layers is None else {"layers": layers.figures(main)}),
        },
    )


def _layers(evidence: VerdictEvidence, rules: LogitsRules) -> LayerVerdict | None:
    if evidence.errors is None:
        return None
    floor = [evidence.baseline.layers("floor", n) for n in range(len(evidence.baseline.record.documents))]
    return judge_layers(side_by_side(evidence.errors), side_by_side(floor), _layer_limits(evidence, rules))


def _layer_limits(evidence: VerdictEvidence, rules: LogitsRules) -> LayerLimits:
    if evidence.numerics.rounds == "every":
        return rules.layers.loosened(rules.rounded)
    if evidence.numerics.rounds == "stored":  # KL grows with the square of an error
        return rules.layers.loosened(widening(evidence.numerics, evidence.native_cost(rules), rules) ** 0.5)
    return rules.layers


def _too_short(comparisons: Sequence[Comparison], documents: int, rules: LogitsRules) -> list[str]:
    """What is too little for a pass, in words."""
    found = [] if documents >= rules.min_documents else [f"{documents} documents of {rules.min_documents}"]
    least = {"prefill": rules.min_tokens, "decode": rules.min_decode_tokens}
    for replay in REPLAYS:
        tokens = min(c.tokens for c in comparisons if c.replay == replay)
        if tokens < least[replay]:
            found.append(f"{tokens} {replay} tokens of {least[replay]}")
    return found


def worst(measures: Iterable[Measure], short: Sequence[str]) -> PartVerdict:
    """What all measures say together; nothing passes where something is too `short`."""
    undecided: list[PartVerdict] = ["cannot-tell"] if short else []
    return together(undecided + [measure.verdict for measure in measures])


def _detail(
    verdict: PartVerdict,
    named: dict[str, Measure],
    short: Sequence[str],
    comparisons: Sequence[Comparison],
    step: ErrorStep | None,
) -> str:
    if verdict == "pass":
        tokens = {c.replay: c.tokens for c in comparisons}
        return f"Within every limit on {tokens['prefill']} prefill and {tokens['decode']} decode tokens."
    odd = [f"{name.split(':')[0]}: {measure}" for name, measure in named.items() if measure.verdict == verdict]
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    if verdict == "fail":
        where = "" if step is None else f" The first step is in layer {step.layer}, {step.half}."
        return f"Outside the limits: {'; '.join(odd[:3])}{more}.{where}"
    if verdict == "not-informative":
        return (
            f"Not informative: {'; '.join(odd[:3])}{more}. A port that knows nothing would hold that, too, or not one "
            "token was there to judge by."
        )
    parts = [f"too little was scored ({', '.join(short)})"] if short else []
    parts += [f"intervals reach across a limit ({'; '.join(odd[:3])}{more})"] if odd else []
    return f"Cannot tell: {' and '.join(parts)}. More documents make the intervals narrower."


def _proves(
    verdict: PartVerdict, comparisons: Sequence[Comparison], evidence: VerdictEvidence, step: ErrorStep | None
) -> tuple[str, ...]:
    said = []
    if verdict == "pass":
        main = [c for c in comparisons if c.reference == evidence.numerics.reference]
        said = [
            f"In {c.replay}, over {c.tokens} tokens, the release gives the distributions of the source's "
            f"{'BF16' if c.reference == 'oracle' else 'native'} run: mean KL {c.mean_kl:.2g} nats, with a noise floor "
            f"of {c.floor:.2g}."
            for c in main
        ]
    errors = evidence.errors
    if errors is not None and step is None and all(np.isfinite(each["streams"]).all() for each in errors):
        said.append("Errors grow smoothly through the layers: none has a step.")
    return tuple(said)


def _leaves_open(
    comparisons: Sequence[Comparison], evidence: VerdictEvidence, rules: LogitsRules, step: ErrorStep | None
) -> tuple[str, ...]:
    record = evidence.baseline.record
    said = ["Equal distributions on given texts are not equal answers: benchmarks measure those."]
    if record.top < record.vocabulary:
        tail = max(comparison.tail for comparison in comparisons)
        said.append(
            f"KL is a lower bound: the {record.top} most likely tokens of {record.vocabulary} one by one, the others "
            f"(at most {tail:.1%} of the probability on average) as one."
        )
    said.append(
        f"Decoding through the cache was replayed for the last {rules.replay.decode_tokens} tokens of a document."
    )
    if record.set == "own":
        said.append("The documents were given by whoever recorded the baseline.")
    if evidence.numerics.rounds != "none":
        said.append("Rounding of activations hides small faults; the weights were proved apart, in their own stage.")
    if step is not None:
        said.append(f"Errors have a step in layer {step.layer}, {step.half}: look there first.")
    if evidence.errors is None:
        said.append("Layers were not looked at one by one (--layers).")
    return tuple(said)


def describe_documents(baseline: Baseline) -> dict[str, JsonValue]:
    """What was read, for the report."""
    record = baseline.record
    kinds: dict[str, JsonValue] = {}
    for kind in dict.fromkeys(document.kind for document in record.documents):
        lengths = [document.tokens for document in record.documents if document.kind == kind]
        kinds[kind] = {"documents": len(lengths), "tokens": sum(lengths), "longest": max(lengths)}
    return {"set": record.set, "sha256": record.documents_sha256, "count": len(record.documents), "kinds": kinds}


def describe_baseline(baseline: Baseline) -> dict[str, JsonValue]:
    """What was compared with, for the report."""
    record = baseline.record
    machine: dict[str, JsonValue] = dict(record.machine.model_dump())
    return {"sha256": baseline.sha256, "machine": machine, "version": record.tool.version, "top": record.top}
