"""The section about logits: the order of its panels, and the panels for KL, agreement by margin, and documents."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from flagrelease.page.panel import Panel, Picture, Table
from flagrelease.records.report import Stage
from flagrelease.validate.page.histogram import Mark, Series, histogram
from flagrelease.validate.page.layer_panels import layer_panels
from flagrelease.validate.page.limits_panel import limits_panel
from flagrelease.validate.page.logits_figures import (
    REFERENCES,
    Agreement,
    Comparison,
    Distribution,
    Document,
    Figures,
    short,
)
from flagrelease.validate.page.served_panels import gate_panel, served_panel

_STYLES = {"prefill": "chip", "decode": "native", "served": "chip"}


def logits_panels(stage: Stage) -> list[Panel]:
    """All panels of the section; none if the stage was not run."""
    if not stage.figures:
        return []
    figures = Figures.model_validate(stage.figures)
    panels = [limits_panel(figures)]
    by_reference = {r: [c for c in figures.comparisons if c.reference == r] for r in REFERENCES}
    panels += [_distribution_panel(reference, found) for reference, found in by_reference.items() if found]
    if figures.served is not None:
        panels.append(served_panel(figures.served))
    if main := [c for c in figures.comparisons if c.decides] or list(figures.comparisons):
        panels += [_agreement_panel(main), _documents_panel(main)]
    if figures.continuations is not None:
        panels.append(gate_panel(figures.continuations))
    if figures.layers is not None:
        panels += layer_panels(figures.layers)
    return panels


def _distribution_panel(reference: str, comparisons: list[Comparison]) -> Panel:
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
        quantiles = (short(c.kl.quantiles.get(key)) for key in ("0.5", "0.9", "0.99", "0.999"))
        table.rows.append((c.replay, f"{c.tokens:,}", short(c.mean_kl), *quantiles, short(c.floor), f"{c.kl.below:,}"))
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
        draw = partial(
            histogram, f"kl-{reference}", edges, series, title=f"KL to {REFERENCES[reference]}, by token",
            description=words, axis="KL of a token, nats", marks=marks, open_below=lowest,
        )  # fmt: skip
        picture = Picture.of(draw)
    else:
        picture = None
        words += f" Every token is {least}: there is nothing to draw." if lowest else " No token's KL is a number."
    legend = tuple((_STYLES[c.replay], f"{c.replay}, {c.tokens:,} tokens") for c in comparisons)
    return Panel(f"KL to {REFERENCES[reference]}", words, picture, table, legend=legend)


def _with_below(kl: Distribution) -> tuple[int, ...]:
    """Count values below the edges in the lowest bin, so that the shares are shares of all tokens."""
    return kl.below + kl.histogram[0], *kl.histogram[1:]


def _trimmed(
    log_edges: tuple[float, ...], histograms: list[tuple[int, ...]]
) -> tuple[list[float], list[tuple[int, ...]]]:
    """Edges in nats and counts, without the empty bins at both ends; empty if all bins are."""
    used = [n for n in range(len(log_edges) - 1) if any(counts[n] for counts in histograms)]
    if not used:
        return [], []
    first, last = used[0], used[-1]
    edges = [10.0**edge for edge in log_edges[first : last + 2]]
    return edges, [counts[first : last + 1] for counts in histograms]


def _agreement_panel(comparisons: list[Comparison]) -> Panel:
    table = Table(("the reference is ahead by", *(f">{REFERENCES[c.reference]}, {c.replay}" for c in comparisons)))
    for position, least in enumerate(row.margin for row in comparisons[0].top1_by_margin):
        shown = [_agreed(c.top1_by_margin[position]) for c in comparisons]
        table.rows.append(("any margin" if least == 0 else f"more than {least:g} nats", *shown))
    words = (
        "Share of the tokens where both have the same most likely token, by how far the reference's first is ahead of "
        "its second. Near-ties may fall either way; where the reference is sure, a port must agree."
    )
    return Panel("Same most likely token", words, table=table, folded=False)


def _agreed(row: Agreement) -> str:
    return f"no token in {row.tokens}" if row.agree is None else f"{row.agree:.2%} of {row.tokens:,}"


def _documents_panel(comparisons: list[Comparison]) -> Panel:
    first = comparisons[0]
    table = Table(("document", "kind", *(f">mean KL, {c.replay}" for c in comparisons), ">tokens"))
    for position, document in enumerate(first.by_document):
        means = [short(c.by_document[position].mean_kl) for c in comparisons]
        table.rows.append((document.name, document.kind, *means, f"{document.tokens:,}"))
    kinds = dict.fromkeys(document.kind for document in first.by_document)
    words = f"Mean KL to {REFERENCES[first.reference]} in {first.replay}, by kind: "
    return Panel("Documents", words + "; ".join(_of_kind(kind, first.by_document) for kind in kinds) + ".", table=table)


def _of_kind(kind: str, documents: Iterable[Document]) -> str:
    same = [document for document in documents if document.kind == kind]
    tokens = sum(document.tokens for document in same if document.mean_kl is not None)
    total = sum(document.mean_kl * document.tokens for document in same if document.mean_kl is not None)
    return f"{kind} {short(total / tokens if tokens else None)}"
