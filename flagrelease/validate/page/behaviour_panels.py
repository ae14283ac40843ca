"""The section of the behaviour stage."""

from __future__ import annotations

from functools import partial

from flagrelease.page.panel import Panel, Picture, Table
from flagrelease.records.report import Stage
from flagrelease.validate.behaviour.stage import BehaviourFigures
from flagrelease.validate.page.forest import ForestRow, forest_plot, signed


def behaviour_panels(stage: Stage) -> list[Panel]:
    """How often answers show each sign, beside the native model."""
    if not stage.figures:
        return []
    figures = BehaviourFigures.model_validate(stage.figures)
    rows = [
        ForestRow(rate.name, rate.verdict, rate.difference, rate.low, rate.high, figures.margin)
        for rate in figures.rates
    ]
    worst = max(figures.rates, key=lambda rate: rate.high)
    words = (
        f"{figures.prompts} prompts, {figures.repeats} answers to each, against {figures.native_stack}. The largest "
        f"excess that the intervals allow is {worst.high:.2f} points ({worst.name}); the margin is {figures.margin:g}."
    )
    table = Table(("what an answer does", ">this release", ">native", ">excess, points", ">interval", "outcome"))
    for rate in figures.rates:
        table.rows.append(
            (
                rate.name, f"{rate.port} of {rate.port_of}", f"{rate.native} of {rate.native_of}",
                signed(rate.difference), f"{signed(rate.low)} to {signed(rate.high)}", rate.verdict,
            )
        )  # fmt: skip
    axis = "points of 100: ← less often, more often →"
    plot = Picture.of(partial(forest_plot, "behaviour", rows, words, worse="right", axis=axis))
    panels = [Panel("How often answers go wrong", words, picture=plot, table=table, folded=False)]
    if figures.token_mismatches:
        mismatches = Table(("prompt",), [(name,) for name in figures.token_mismatches])
        panels.append(Panel("Prompts that become other tokens", "By id.", table=mismatches, folded=False))
    return panels
