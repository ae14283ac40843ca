"""The panel of limits: every limit of the logits stage, and how much of each is used."""

from __future__ import annotations

import math
from functools import partial

from flagrelease.page.panel import Panel, Picture, Table
from flagrelease.records.report import Stage
from flagrelease.validate.page.allowance import Allowance, allowance_plot
from flagrelease.validate.page.logits_figures import Figures, Measure, short

_BRIEF = {
    "mean_kl": "mean KL",
    "above": "tokens with large KL",
    "top1": "same first token",
    "top1_clear": "same where sure",
    "perplexity": "perplexity",
    "ratio": "KL over the oracle's",
    "outliers": "wild tokens",
    "nonfinite": "NaN",
    "nll": "loss on native texts",
    "sampled_kl": "KL on native texts",
    "last_error": "last layer's error",
    "early_cosine": "cosine, early",
    "late_cosine": "cosine, late",
    "experts": "same experts",
}
_LEAST = 1e-12  # a ratio of exactly 0 has no logarithm


def nearest_limit(stage: Stage) -> float | None:
    """The largest used share of any limit: 1 is all of it. None if no limit has a scale."""
    figures = Figures.model_validate(stage.figures)
    return max((row.used for row in _allowances(named_measures(figures))), default=None)


def named_measures(figures: Figures) -> list[tuple[str, Measure]]:
    """All measures, each with the comparison that it belongs to."""
    named = [(f"{c.reference}, {c.replay}", measure) for c in figures.comparisons for measure in c.measures]
    named += [(f"ratio, {replay}", measure) for replay, measure in figures.ratio.items()]
    if figures.continuations is not None:
        named += [("native texts", Measure.model_validate(each)) for each in figures.continuations.measures]
    return named + [("layers", measure) for measure in (figures.layers.measures if figures.layers is not None else ())]


def limits_panel(figures: Figures) -> Panel:
    """Draw all limits on one scale, where 0 is perfect and 1 is the limit."""
    named = named_measures(figures)
    table = Table(("against", "measure", ">value", ">interval", "limit", "outcome"))
    table.rows.extend((where, *_measured(measure)) for where, measure in named)
    held = sum(measure.verdict == "pass" for _, measure in named)
    used = _allowances(named)
    words = f"{held} of {len(named)} limits hold."
    if used:
        nearest = sorted(used, key=lambda row: -row.used)[:3]
        words += f" Nearest to their limits: {', '.join(f'{row.name} ({row.used:.0%})' for row in nearest)}."
    picture = Picture.of(partial(allowance_plot, "limits", used, words)) if used else None
    return Panel("Limits, and how much of each is used", words, picture, table)


def _allowances(named: list[tuple[str, Measure]]) -> list[Allowance]:
    return [found for where, measure in named if (found := _allowance(where, measure)) is not None]


def _allowance(where: str, measure: Measure) -> Allowance | None:
    """Convert a measure to the scale where 0 is perfect and 1 is the limit; None if the limit is a count of 0."""
    if measure.value is None or measure.low is None or measure.high is None or measure.at_most == 0:
        return None
    shares = [_used(measure, value) for value in (measure.value, measure.low, measure.high)]
    low = 0.0 if measure.low < _perfect(measure) < measure.high else min(shares)
    return Allowance(f"{where}: {_BRIEF[measure.name]}", measure.verdict, shares[0], low, max(shares))


def _used(measure: Measure, value: float) -> float:
    perfect = _perfect(measure)
    limit = measure.at_most if value >= perfect else measure.at_least
    if limit is None:
        return 0.0  # better than perfect on a side without limit
    if measure.name == "ratio":
        return math.log(max(value, _LEAST)) / math.log(limit)
    return (value - perfect) / (limit - perfect)


def _perfect(measure: Measure) -> float:
    """The value that two equal models would give."""
    return 1.0 if measure.name in ("top1", "top1_clear", "ratio", "early_cosine", "late_cosine", "experts") else 0.0


def _measured(measure: Measure) -> tuple[str, ...]:
    limits = [f"at least {measure.at_least:g}"] if measure.at_least is not None else []
    limits += [f"at most {measure.at_most:.4g}"] if measure.at_most is not None else []
    between = "" if measure.low == measure.high else f"{short(measure.low)} to {short(measure.high)}"
    return measure.label, short(measure.value), between, " and ".join(limits), measure.verdict
