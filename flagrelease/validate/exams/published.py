"""Published native scores as a check of the native side itself: a damaged source agrees with its own port.

The figures never help a release to pass. They say "cannot tell" where the native score is below every figure that was
published for the same way of asking, beyond the sampling error of both and as if every answer that was cut off had been
right, since budgets differ and are not compared.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict

from flagrelease.records.rules import BenchmarkRules, PublishedScore
from flagrelease.validate.exams.side import Side
from flagrelease.validate.statistics import normal
from flagrelease.validate.statistics.intervals import wilson

CONFIDENCE = 0.95
_Z = normal.quantile((1 + CONFIDENCE) / 2)
DAMAGED = "the source or its runs may be damaged: a damaged source agrees with its own port"


class PublishedFigures(BaseModel):
    """One published figure beside the native score, in points of 100. `low` and `high`: of its sampling error alone.

    `outcome` is `other-settings` where the figure was made in another mode, at another temperature or top-p, or over
    the whole dataset where this run had a part of it: then it says nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    score: float
    low: float
    high: float
    settings: str
    source: str
    native: float
    native_low: float
    native_high: float
    outcome: Literal["agrees", "native-too-low", "other-settings"]


def beside_published(rules: BenchmarkRules, native: Side) -> tuple[PublishedFigures, ...]:
    """Every figure of the rules beside the native score."""
    return tuple(_beside(rules, native, published) for published in rules.published)


def why_source_is_doubted(figures: tuple[PublishedFigures, ...]) -> str | None:
    """A sentence, if the native score is below every figure that it can be compared with."""
    compared = [each for each in figures if each.outcome != "other-settings"]
    if not compared or any(each.outcome == "agrees" for each in compared):
        return None
    lowest = min(compared, key=lambda each: each.score)
    return (
        f"the native score, {lowest.native:.2f}, is below every published one of this model, the lowest "
        f"{lowest.score:.2f} ({lowest.source}): {DAMAGED}"
    )


def _beside(rules: BenchmarkRules, native: Side, published: PublishedScore) -> PublishedFigures:
    value, own = 100 * float(native.scores().mean()), _Z * 100 * _error_within(native)
    low, high = _interval(rules, published, len(native.items))
    same = (published.mode, published.temperature, published.top_p) == (rules.mode, rules.temperature, rules.top_p)
    whole = rules.questions is None or len(native.items) >= rules.questions
    best = value + 100 * native.truncated_rate()
    too_low = published.score - best > math.hypot(published.score - low, own)  # Newcombe's interval of a difference
    return PublishedFigures(
        score=published.score,
        low=low,
        high=high,
        settings=_say_settings(published),
        source=published.source,
        native=value,
        native_low=max(0.0, value - own),
        native_high=min(100.0, value + own),
        outcome="other-settings" if not (same and whole) else "native-too-low" if too_low else "agrees",
    )


def _error_within(side: Side) -> float:
    """The standard error of a score on these questions, from how much the repeats of each differ."""
    scores = side.scores()
    return math.sqrt(float(scores.var(axis=1, ddof=1).sum()) / scores.shape[1]) / len(scores)


def _interval(rules: BenchmarkRules, published: PublishedScore, asked: int) -> tuple[float, float]:
    """Of the published score: by its error; else Wilson's for independent answers, wider than for repeats of each."""
    if (error := published.standard_error) is not None:
        return max(0.0, published.score - _Z * error), min(100.0, published.score + _Z * error)
    low, high = wilson(published.score / 100, (rules.questions or asked) * published.repeats, CONFIDENCE)
    return 100 * low, 100 * high


def _say_settings(published: PublishedScore) -> str:
    said = f"{published.mode}, temperature {published.temperature:g}, top-p {published.top_p:g}"
    return f"{said}, {published.settings}" if published.settings else said
