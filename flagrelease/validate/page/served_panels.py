"""The panels of what a server told: how far its lists reach, and the texts that the native model wrote."""

from __future__ import annotations

from flagrelease.page.panel import Panel, Table
from flagrelease.validate.logits.continuations.figures import GateFigures
from flagrelease.validate.logits.served.figures import Costs, Served
from flagrelease.validate.page.logits_figures import REFERENCES, short


def served_panel(served: Served) -> Panel:
    """What the lists prove, what they suggest, and what they leave out."""
    table = Table(
        (
            "against", ">mean KL at least", ">as the lists suggest", ">share that such lists show", ">not listed",
            ">total variation",
        )
    )  # fmt: skip
    for each in served.bounds:
        table.rows.append(
            (
                REFERENCES[each.reference],
                short(each.shown),
                short(each.inferred),
                "not defined" if each.share is None else f"{each.share:.0%}",
                f"{each.unlisted:.2%}",
                f"{short(each.least_variation)} to {short(each.most_variation)}",
            )
        )
    words = (
        f"{served.documents} documents, scored by {served.way} with {served.alternatives} alternatives at each place. "
        "A short list proves how far apart the two are at least; what it suggests of the whole is that bound over "
        f"the share that such lists show of the difference between the source's own two runs.{_costs(served.costs)}"
    )
    if whole := max((each.bounded for each in served.bounds), default=0.0):
        words += (
            f" Of {whole:.0%} of the tokens the lists have all that the reference keeps: there the bound is the KL."
        )
    if served.refused:
        named = "; ".join(f"{each.name}: {each.reason}" for each in served.refused[:3])
        words += f" Not compared: {len(served.refused)} ({named})."
    if served.cut:
        words += f" Cut to the server's context: {', '.join(served.cut)}."
    return Panel("What the server told", words, table=table, folded=False)


def gate_panel(gate: GateFigures) -> Panel:
    """Every text, and how likely both sides find it."""
    table = Table(("text", ">tokens", ">native, nats a token", ">this release", ">difference"))
    for text in sorted(gate.texts, key=lambda each: each.native - each.port):
        numbers = (text.native, text.port, text.port - text.native)
        table.rows.append((text.name, f"{text.tokens:,}", *map(short, numbers)))
    words = (
        f"{len(gate.texts)} texts that the native model sampled, {gate.tokens:,} tokens: how unlikely each side finds "
        f"a token of them on average, the largest loss first.{_costs(gate.costs)}"
    )
    return Panel("Texts of the native model", words, table=table)


def _costs(costs: Costs) -> str:
    took = f", which took {costs.seconds:,.0f} s in all" if costs.seconds else ""
    return f" {costs.requests:,} requests of {costs.tokens:,} tokens{took}."
