"""The section of the logits stage: limits, distributions of KL, agreement by margin, documents, layers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from flagrelease.records.report import Stage, Verdict
from flagrelease.validate.page.allowance import Allowance, allowance_plot
from flagrelease.validate.page.curve import Line, layer_curve
from flagrelease.validate.page.histogram import Mark, Series, histogram
from flagrelease.validate.page.panel import Panel, Table

_REFERENCES = {"oracle": "the BF16 oracle", "native": "the native run"}
_STYLES = {"prefill": "chip", "decode": "native"}
_BRIEF = {
    "mean_kl": "mean KL",
    "above": "tokens with large KL",
    "top1": "same first token",
    "top1_clear": "same where sure",
    "perplexity": "perplexity",
    "ratio": "KL over the oracle's",
    "outliers": "wild tokens",
    "nonfinite": "NaN",
    "last_error": "last layer's error",
    "early_cosine": "cosine, early",
    "late_cosine": "cosine, late",
    "experts": "same experts",
}
_LEAST = 1e-12  # a ratio of exactly 0 has no logarithm


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Measure(_Read):
    name: str
    label: str
    value: float | None
    low: float | None
    high: float | None
    at_least: float | None
    at_most: float | None
    verdict: Verdict


class _Distribution(_Read):
    edges: tuple[float, ...]
    histogram: tuple[int, ...]
    below: int
    quantiles: dict[str, float]


class _Agreement(_Read):
    margin: float
    tokens: int
    agree: float | None


class _Document(_Read):
    name: str
    kind: str
    tokens: int
    mean_kl: float | None


class _Comparison(_Read):
    reference: Literal["oracle", "native"]
    replay: Literal["prefill", "decode"]
    decides: bool
    tokens: int
    floor: float
    mean_kl: float | None
    measures: tuple[_Measure, ...]
    kl: _Distribution
    top1_by_margin: tuple[_Agreement, ...]
    by_document: tuple[_Document, ...]


class _Curves(_Read):
    port: tuple[float | None, ...]
    floor: tuple[float | None, ...]


class _Step(_Read):
    layer: int
    half: str
    before: float
    behind: float | None


class _Layers(_Read):
    reference: Literal["oracle", "native"]
    positions: int
    curves: dict[str, _Curves]
    step: _Step | None
    measures: tuple[_Measure, ...]


class _Figures(_Read):
    """What `validate.logits.verdict` makes."""

    comparisons: tuple[_Comparison, ...]
    ratio: dict[str, _Measure]
    layers: _Layers | None = None


def logits_panels(stage: Stage) -> list[Panel]:
    """All of them; none where the stage was not run."""
    if not stage.figures:
        return []
    figures = _Figures.model_validate(stage.figures)
    panels = [_limits_panel(figures)]
    by_reference = {r: [c for c in figures.comparisons if c.reference == r] for r in _REFERENCES}
    panels += [_distribution_panel(reference, found) for reference, found in by_reference.items() if found]
    main = [c for c in figures.comparisons if c.decides] or list(figures.comparisons)
    panels += [_agreement_panel(main), _documents_panel(main)]
    if figures.layers is not None:
        panels += _layer_panels(figures.layers)
    return panels


def nearest_limit(stage: Stage) -> float | None:
    """How much of the limit that is nearest is used: 1 is all of it. None where no limit has a scale."""
    figures = _Figures.model_validate(stage.figures)
    return max((row.used for row in _allowances(_named(figures))), default=None)


def _named(figures: _Figures) -> list[tuple[str, _Measure]]:
    """All measures, with what each is about."""
    named = [(f"{c.reference}, {c.replay}", measure) for c in figures.comparisons for measure in c.measures]
    named += [(f"ratio, {replay}", measure) for replay, measure in figures.ratio.items()]
    return named + [("layers", measure) for measure in (figures.layers.measures if figures.layers is not None else ())]


def _limits_panel(figures: _Figures) -> Panel:
    named = _named(figures)
    table = Table(("against", "measure", ">value", ">interval", "limit", "outcome"))
    table.rows.extend((where, *_measured(measure)) for where, measure in named)
    held = sum(measure.verdict == "pass" for _, measure in named)
    used = _allowances(named)
    words = f"{held} of {len(named)} limits hold."
    if used:
        nearest = sorted(used, key=lambda row: -row.used)[:3]
        words += f" Nearest to their limits: {', '.join(f'{row.name} ({row.used:.0%})' for row in nearest)}."
    picture = allowance_plot("limits", used, words) if used else None
    return Panel("Limits, and how much of each is used", words, picture, table)


def _allowances(named: list[tuple[str, _Measure]]) -> list[Allowance]:
    return [found for where, measure in named if (found := _allowance(where, measure)) is not None]


def _allowance(where: str, measure: _Measure) -> Allowance | None:
    """On the scale where 0 is perfect and 1 is the limit; None for a count of which none is allowed."""
    if measure.value is None or measure.low is None or measure.high is None or measure.at_most == 0:
        return None
    shares = [_used(measure, value) for value in (measure.value, measure.low, measure.high)]
    low = 0.0 if measure.low < _perfect(measure) < measure.high else min(shares)
    return Allowance(f"{where}: {_BRIEF[measure.name]}", measure.verdict, shares[0], low, max(shares))


def _used(measure: _Measure, value: float) -> float:
    perfect = _perfect(measure)
    limit = measure.at_most if value >= perfect else measure.at_least
    if limit is None:
        return 0.0  # better than perfect on a side without limit
    if measure.name == "ratio":
        return math.log(max(value, _LEAST)) / math.log(limit)
    return (value - perfect) / (limit - perfect)


def _perfect(measure: _Measure) -> float:
    """What two equal models give."""
    return 1.0 if measure.name in ("top1", "top1_clear", "ratio", "early_cosine", "late_cosine", "experts") else 0.0


def _measured(measure: _Measure) -> tuple[str, ...]:
    limits = [f"at least {measure.at_least:g}"] if measure.at_least is not None else []
    limits += [f"at most {measure.at_most:.4g}"] if measure.at_most is not None else []
    between = "" if measure.low == measure.high else f"{_short(measure.low)} to {_short(measure.high)}"
    return measure.label, _short(measure.value), between, " and ".join(limits), measure.verdict


def _short(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4g}".replace("-", "−")


def _distribution_panel(reference: str, comparisons: list[_Comparison]) -> Panel:
    first = comparisons[0]
    lowest = any(c.kl.below for c in comparisons)
    edges, counts = _trimmed(first.kl.edges, [_with_below(c.kl) for c in comparisons])
    marks = []
    if first.mean_kl:
        marks.append(Mark(first.mean_kl, f"mean, {first.replay}", "mean"))
    limit = next((m.at_most for m in first.measures if m.name == "mean_kl"), None)
    if limit is not None:
        marks.append(Mark(limit, "limit of the mean", "limit"))
    least = f"below {10 ** first.kl.edges[0]:.0e} nats"
    table = Table(
        ("replay", ">tokens", ">mean", ">median", ">90%", ">99%", ">99.9%", ">noise floor, mean", f">{least}")
    )
    for c in comparisons:
        quantiles = (_short(c.kl.quantiles.get(key)) for key in ("0.5", "0.9", "0.99", "0.999"))
        table.rows.append(
            (c.replay, f"{c.tokens:,}", _short(c.mean_kl), *quantiles, _short(c.floor), f"{c.kl.below:,}")
        )
    words = " ".join(
        f"{row[0].capitalize()}, {row[1]} tokens: mean {row[2]} nats, 99.9% of the tokens below {row[6]}; "
        f"the noise floor has a mean of {row[7]}."
        for row in table.rows
    )
    if any(any(c.kl.histogram) for c in comparisons):
        if lowest:
            few = ", ".join(f"{row[8]} in {row[0]}" for row in table.rows)
            words += f" Tokens {least} are in the lowest bin: {few}."
        series = [Series(c.replay, _STYLES[c.replay], part) for c, part in zip(comparisons, counts, strict=True)]
        picture = histogram(
            f"kl-{reference}", edges, series, title=f"KL to {_REFERENCES[reference]}, by token", description=words,
            axis="KL of a token, nats", marks=marks, open_below=lowest,
        )  # fmt: skip
    else:
        picture = None
        words += f" Every token is {least}: there is nothing to draw." if lowest else " No token's KL is a number."
    legend = tuple((_STYLES[c.replay], f"{c.replay}, {c.tokens:,} tokens") for c in comparisons)
    return Panel(f"KL to {_REFERENCES[reference]}", words, picture, table, legend=legend)


def _with_below(kl: _Distribution) -> tuple[int, ...]:
    """What lies below the edges counts in the lowest bin, or shares would not be of all tokens."""
    return kl.below + kl.histogram[0], *kl.histogram[1:]


def _trimmed(
    log_edges: tuple[float, ...], histograms: list[tuple[int, ...]]
) -> tuple[list[float], list[tuple[int, ...]]]:
    """Edges in nats and counts, without the empty bins at both ends; nothing where all are empty."""
    used = [n for n in range(len(log_edges) - 1) if any(counts[n] for counts in histograms)]
    if not used:
        return [], []
    first, last = used[0], used[-1]
    edges = [10.0**edge for edge in log_edges[first : last + 2]]
    return edges, [counts[first : last + 1] for counts in histograms]


def _agreement_panel(comparisons: list[_Comparison]) -> Panel:
    table = Table(("the reference is ahead by", *(f">{_REFERENCES[c.reference]}, {c.replay}" for c in comparisons)))
    for position, least in enumerate(row.margin for row in comparisons[0].top1_by_margin):
        shown = [_agreed(c.top1_by_margin[position]) for c in comparisons]
        table.rows.append(("any margin" if least == 0 else f"more than {least:g} nats", *shown))
    words = (
        "Share of the tokens where both have the same most likely token, by how far the reference's first is ahead of "
        "its second. Near-ties may fall either way; where the reference is sure, a port must agree."
    )
    return Panel("Same most likely token", words, table=table, folded=False)


def _agreed(row: _Agreement) -> str:
    return f"no token in {row.tokens}" if row.agree is None else f"{row.agree:.2%} of {row.tokens:,}"


def _documents_panel(comparisons: list[_Comparison]) -> Panel:
    first = comparisons[0]
    table = Table(("document", "kind", *(f">mean KL, {c.replay}" for c in comparisons), ">tokens"))
    for position, document in enumerate(first.by_document):
        means = [_short(c.by_document[position].mean_kl) for c in comparisons]
        table.rows.append((document.name, document.kind, *means, f"{document.tokens:,}"))
    kinds = dict.fromkeys(document.kind for document in first.by_document)
    words = f"Mean KL to {_REFERENCES[first.reference]} in {first.replay}, by kind: "
    return Panel("Documents", words + "; ".join(_of_kind(kind, first.by_document) for kind in kinds) + ".", table=table)


def _of_kind(kind: str, documents: Iterable[_Document]) -> str:
    same = [document for document in documents if document.kind == kind]
    tokens = sum(document.tokens for document in same if document.mean_kl is not None)
    total = sum(document.mean_kl * document.tokens for document in same if document.mean_kl is not None)
    return f"{kind} {_short(total / tokens if tokens else None)}"


def _layer_panels(layers: _Layers) -> list[Panel]:
    panels = []
    limits = {m.name: m.at_most for m in layers.measures}
    for kind, name, limit in (
        ("streams", "Error behind each layer", limits.get("last_error")),
        ("attention", "Error behind each layer's attention", None),
    ):
        lines = [
            Line("this chip", "chip", layers.curves[kind].port),
            Line("noise floor", "floor", layers.curves[kind].floor),
        ]
        steps = [layers.step.layer] if layers.step is not None else []
        words = _say_layers(layers, lines[0].values) + "".join(_say_gaps(line) for line in lines)
        picture = layer_curve(
            f"layers-{kind}", lines, title=name, description=words, axis="layer", limit=limit, steps=steps
        )
        table = Table(("layer", ">this chip", ">noise floor"))
        for layer, (ours, floor) in enumerate(zip(lines[0].values, lines[1].values, strict=True)):
            table.rows.append((str(layer), _short(ours), _short(floor)))
        legend = (("chip", "this chip"), ("floor", "noise floor"))
        panels.append(Panel(name, words, picture, table, legend=legend))
    return panels


def _say_gaps(line: Line) -> str:
    """The layers where there is no number to draw."""
    gaps = [str(layer) for layer, value in enumerate(line.values) if value is None]
    return f" Not a number, and a gap in the curve of {line.name}: layer {', '.join(gaps)}." if gaps else ""


def _say_layers(layers: _Layers, values: tuple[float | None, ...]) -> str:
    said = (
        f"Relative error against {_REFERENCES[layers.reference]}, median of {layers.positions} positions: "
        f"{_short(values[0])} behind layer 0, {_short(values[-1])} behind layer {len(values) - 1}."
    )
    if layers.step is None:
        return said + " No step: the error grows as rounding does."
    step = layers.step
    return said + f" A step in layer {step.layer} ({step.half}): from {_short(step.before)} to {_short(step.behind)}."
