"""The panels about layers: the error behind each one, and where it steps up."""

from __future__ import annotations

from functools import partial

from flagrelease.page.panel import Panel, Picture, Table
from flagrelease.validate.page.curve import Line, layer_curve
from flagrelease.validate.page.logits_figures import REFERENCES, Layers, short


def layer_panels(layers: Layers) -> list[Panel]:
    """Make a panel for the streams between layers, and one for what attention adds."""
    panels = []
    limits = {m.name: m.at_most for m in layers.measures}
    for kind, name, limit in (
        ("streams", "Error behind each layer", limits.get("last_error")),
        ("attention", "Error behind each layer's attention", None),
    ):
        lines = [
            Line("this release", "chip", layers.curves[kind].port),
            Line("noise floor", "floor", layers.curves[kind].floor),
        ]
        steps = [layers.step.layer] if layers.step is not None else []
        words = _say_layers(layers, lines[0].values) + "".join(_say_gaps(line) for line in lines)
        curve = partial(layer_curve, f"layers-{kind}", lines, title=name, description=words, axis="layer")
        picture = Picture.of(partial(curve, limit=limit, steps=steps))
        table = Table(("layer", ">this release", ">noise floor"))
        for layer, (ours, floor) in enumerate(zip(lines[0].values, lines[1].values, strict=True)):
            table.rows.append((str(layer), short(ours), short(floor)))
        legend = (("chip", "this release"), ("floor", "noise floor"))
        panels.append(Panel(name, words, picture, table, legend=legend))
    return panels


def _say_gaps(line: Line) -> str:
    """Name the layers that have no number to draw."""
    gaps = [str(layer) for layer, value in enumerate(line.values) if value is None]
    return f" Not a number, and a gap in the curve of {line.name}: layer {', '.join(gaps)}." if gaps else ""


def _say_layers(layers: Layers, values: tuple[float | None, ...]) -> str:
    said = (
        f"Relative error against {REFERENCES[layers.reference]}, median of {layers.positions} positions: "
        f"{short(values[0])} behind layer 0, {short(values[-1])} behind layer {len(values) - 1}."
    )
    if layers.step is None:
        return said + " No step: the error grows as rounding does."
    step = layers.step
    return said + f" A step in layer {step.layer} ({step.half}): from {short(step.before)} to {short(step.behind)}."
