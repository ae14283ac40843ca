"""`run_gate`: the port scores the texts that the native model wrote, in minutes and before anything longer is run.

The native model p sampled the texts at temperature 1, so the mean of log p - log q over their tokens is an unbiased
estimate of KL(p || q) for each token of its own text, over the whole vocabulary: k1, and the loss of log-probability.
k3 = r - 1 - log r with r = q / p estimates the same with less noise and is never negative (J. Schulman, "Approximating
KL divergence", 2020). Intervals are by text, as the stage's are by document.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from flagrelease.durable.log import AppendLog
from flagrelease.records.report import PartVerdict, Stage, together
from flagrelease.records.rules import LogitsRules
from flagrelease.validate.logits.bootstrap import draw_weights
from flagrelease.validate.logits.continuations.figures import GateFigures, GateText
from flagrelease.validate.logits.continuations.stored import Continuation, Continuations
from flagrelease.validate.logits.continuations.texts import TextModel
from flagrelease.validate.logits.distribution import Figures
from flagrelease.validate.logits.judge import Judge, Measure, exactly, judge
from flagrelease.validate.logits.served.figures import Costs, Refused
from flagrelease.validate.logits.sums import sum_up
from flagrelease.validate.logits.verdict import worst

Watch = Callable[[int, int], None]  # texts so far, of how many


class _Rating(BaseModel):
    """What the port said of a text: log-probabilities of the answer's tokens, or why there are none."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    logp: tuple[float | None, ...] | str  # None: not a number
    seconds: float


@dataclass(frozen=True, slots=True)
class Gate:
    """How the gate ended; `said` is the sentence about it."""

    verdict: PartVerdict
    said: str
    figures: GateFigures

    def alone(self, why: str) -> Stage:
        """The stage when nothing else was run; `why` not, as a clause. The gate alone is no pass."""
        verdict: PartVerdict = "fail" if self.verdict == "fail" else "cannot-tell"
        return Stage(
            name="logits",
            verdict=verdict,
            detail=f"{self.said} {why}",
            leaves_open=("Single tokens, and texts that the native model did not write.",),
            figures={"comparisons": [], "ratio": {}, "continuations": self.figures.model_dump(mode="json")},
        )

    def beside(self, stage: Stage) -> Stage:
        """The stage with the gate's verdict, sentence and figures added to it."""
        if stage.verdict == "not-run":
            return stage
        verdict = together((stage.verdict, self.verdict))
        proved = self.verdict == "pass"
        return stage.model_copy(
            update={
                "verdict": verdict,
                "detail": f"{stage.detail} {self.said}",
                "proves": (*stage.proves, *((self.said,) if proved else ())),
                "figures": {**stage.figures, "continuations": self.figures.model_dump(mode="json")},
            }
        )


def run_gate(
    model: TextModel,
    continuations: Continuations,
    rules: LogitsRules,
    vocabulary: int,
    journal: Path,
    binding: Mapping[str, str],
    watch: Watch,
) -> Gate:
    """Score what the journal does not hold yet, and judge.

    Args:
        model: the port.
        continuations: of the native model.
        rules: `rules.continuations` has the limits.
        vocabulary: tokens that the model has.
        journal: the log of scores; `binding` says what they depend on.
        watch: is told after every text.

    Raises:
        ResourceError: the journal was begun for something else, or is in use.
        NetworkError: a server cannot be asked.
    """
    with AppendLog(journal, "scores of continuations", 1, TypeAdapter(_Rating), dict(binding)) as log:
        done = {rating.name: rating for rating in log.records}
        answers = {text.name: text.answer for text in continuations.texts}
        for rated in model.rate({text.name: text.tokens for text in continuations.texts if text.name not in done}):
            logp = rated.of_last(len(answers[rated.name]))
            told = logp if isinstance(logp, str) else tuple(x if np.isfinite(x) else None for x in logp)
            done[rated.name] = _Rating(name=rated.name, logp=told, seconds=rated.seconds)
            log.append(done[rated.name], sync=True)
            watch(len(done), len(answers))
    return _judged(continuations, done, rules, vocabulary)


def _judged(continuations: Continuations, done: Mapping[str, _Rating], rules: LogitsRules, vocabulary: int) -> Gate:
    texts = [text for text in continuations.texts if not isinstance(done[text.name].logp, str)]
    refused = tuple(
        Refused(name=rating.name, reason=rating.logp) for rating in done.values() if isinstance(rating.logp, str)
    )
    figures = [_figures(text, done[text.name].logp) for text in texts]
    measures = _measures(figures, rules, vocabulary) if figures else []
    tokens = sum(int(each.finite.sum()) for each in figures)
    least = rules.continuations.min_tokens
    short = [f"{tokens} tokens of {least}"] if tokens < least else []
    verdict = worst(measures, short) if measures else "cannot-tell"
    found = GateFigures(
        tokens=tokens,
        measures=tuple(measure.to_json() for measure in measures),
        texts=tuple(_text(text, each) for text, each in zip(texts, figures, strict=True)),
        refused=refused,
        costs=Costs(
            requests=len(done),
            tokens=sum(len(text.tokens) for text in continuations.texts),
            seconds=sum(rating.seconds for rating in done.values()),
        ),
    )
    return Gate(verdict, _sentence(verdict, measures, tokens, short, refused), found)


def _figures(text: Continuation, logp: tuple[float | None, ...] | str) -> Figures:
    assert not isinstance(logp, str)
    tested = np.array([np.nan if x is None else x for x in logp])
    count, finite = len(text.logp), ~np.isnan(tested)
    nothing = np.zeros(count)
    return Figures(
        kl=nothing,
        margin=nothing,
        agree=nothing.astype(bool),
        reference=np.array(text.logp),
        tested=np.where(finite, tested, 0.0),
        tail=nothing,
        finite=finite,
    )


def _measures(figures: Sequence[Figures], rules: LogitsRules, vocabulary: int) -> list[Measure]:
    by_text = Judge(rules, draw_weights(len(figures), rules.resamples, rules.seed), vocabulary)
    sums, most = sum_up(figures, rules.native), rules.continuations.most
    # what a port that knows nothing would give: the same probability to every token
    uniform = [replace(each, tested=np.full(len(each.reference), -math.log(vocabulary))) for each in figures]
    blind = sum_up(uniform, rules.native).total
    return [
        judge("nll", by_text.spread(sums, lambda s: s.k1), -most, most, float(blind.k1[0])),
        judge("sampled_kl", by_text.spread(sums, lambda s: s.k3), at_most=most, blind=float(blind.k3[0])),
        exactly("nonfinite", sum(int((~each.finite).sum()) for each in figures), at_most=0),
    ]


def _text(text: Continuation, figures: Figures) -> GateText:
    port = figures.tested[figures.finite]
    return GateText(
        name=text.name,
        tokens=len(text.answer),
        native=-float(figures.reference.mean()),
        port=-float(port.mean()) if len(port) else 0.0,
    )


def _sentence(
    verdict: PartVerdict, measures: Sequence[Measure], tokens: int, short: Sequence[str], refused: Sequence[Refused]
) -> str:
    without = f" Not scored: {len(refused)}, the first is {refused[0].name}: {refused[0].reason}." if refused else ""
    if not measures:
        return f"None of the native model's texts was scored.{without}"
    odd = next((m for m in measures if m.verdict == verdict), measures[0])
    said = f"{tokens} tokens that the native model wrote: {odd}"
    if verdict == "fail":
        return f"Outside the gate's limit on {said}.{without}"
    if verdict == "not-informative":
        return f"The gate is not informative: a model that knows nothing would hold {odd}, too.{without}"
    if verdict == "cannot-tell":
        return f"The gate cannot tell from {said}{'; too little: ' + short[0] if short else ''}.{without}"
    return f"Within the gate's limits on {said}.{without}"
