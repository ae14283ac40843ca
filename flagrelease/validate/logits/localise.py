"""Where two runs part: errors by layer, and the first layer whose error is a step and not a growth.

Rounding errors of layers add up about as the square root of depth, so the curve of a sound port is smooth; a fault in
one layer is a step, and all layers behind it inherit the error.

Legend: L layers, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagrelease.records.rules import LayerLimits
from flagrelease.validate.logits.layers import Array, States, floats

Numbers = NDArray[np.float64]
ERRORS = ("streams", "cosine", "attention", "scores", "experts", "gap", "entries")
Errors = dict[str, Numbers]


@dataclass(frozen=True, slots=True)
class ErrorStep:
    """The first step: which layer, behind which of its halves, and the median errors before and behind it."""

    layer: int
    half: str
    before: float
    behind: float


def layer_errors(reference: States, tested: States, layers: int) -> Errors:
    """Each of `ERRORS` as [L, P]: two runs of the same positions.

    `streams`, `attention`, `scores`: ||tested - reference|| / ||reference||. `cosine`: of the streams. `experts`: share
    of the reference's experts that the tested run chose; `gap`: where it is below 1, how far the reference's last
    chosen expert was ahead of the next (NaN elsewhere). `entries`: Jaccard index of the indexer's choices, NaN where a
    layer has none.
    """
    count = len(reference["0.attention"])
    errors: Errors = {kind: np.full((layers, count), np.nan) for kind in ERRORS}
    for layer in range(layers):
        for kind in ("streams", "attention", "scores"):
            ours, theirs = (floats(run[f"{layer}.{kind}"]).reshape(count, -1) for run in (reference, tested))
            errors[kind][layer] = _relative(ours, theirs)
            if kind == "streams":
                errors["cosine"][layer] = _cosine(ours, theirs)
        chosen, other = reference[f"{layer}.experts"], tested[f"{layer}.experts"]
        shared = (chosen[:, :, None] == other[:, None, :]).any(-1)
        errors["experts"][layer] = shared.mean(-1)
        errors["gap"][layer] = np.where(shared.all(-1), np.nan, _gap(reference[f"{layer}.scores"], chosen.shape[-1]))
        if f"{layer}.entries" in reference:
            errors["entries"][layer] = _jaccard(reference[f"{layer}.entries"], tested[f"{layer}.entries"])
    return errors


def medians(errors: Errors, kind: str) -> Numbers:
    """Over positions, by layer [L]; NaN where a layer has none."""
    table = errors[kind]
    return np.array([np.median(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in table])


def first_step(errors: Errors, floor: Errors, limits: LayerLimits) -> ErrorStep | None:
    """The first half of a layer whose median error is `limits.step` times that before it, the floor's, and a rounding.

    Attention's half is judged by its output, a layer by the streams behind it.
    """
    before = 0.0
    behind = {kind: (medians(errors, kind), medians(floor, kind)) for kind in ("attention", "streams")}
    for layer in range(len(errors["streams"])):
        for kind, half in (("attention", "attention"), ("streams", "feed-forward")):
            error, noise = (float(curve[layer]) for curve in behind[kind])
            if error > limits.step * max(before, noise, limits.rounding):
                return ErrorStep(layer, half, before, error)
            before = max(before, error)
    return None


def _relative(reference: Numbers, tested: Numbers) -> Numbers:
    size = np.linalg.norm(reference, axis=-1)
    apart = np.linalg.norm(tested - reference, axis=-1)
    return np.asarray(np.divide(apart, size, out=np.where(apart > 0, np.inf, 0.0), where=size > 0))


def _cosine(reference: Numbers, tested: Numbers) -> Numbers:
    sizes = np.linalg.norm(reference, axis=-1) * np.linalg.norm(tested, axis=-1)
    both = (reference * tested).sum(-1)
    return np.asarray(np.divide(both, sizes, out=np.zeros_like(both), where=sizes > 0))


def _gap(scores: Array, chosen: int) -> Numbers:
    ordered = -np.sort(-scores.astype(np.float64), axis=-1)
    if ordered.shape[-1] == chosen:  # every expert is chosen
        return np.full(len(ordered), np.inf)
    return np.asarray(ordered[:, chosen - 1] - ordered[:, chosen])


def _jaccard(reference: Array, tested: Array) -> Numbers:
    pairs = [(set(a[a >= 0].tolist()), set(b[b >= 0].tolist())) for a, b in zip(reference, tested, strict=True)]
    return np.array([len(a & b) / len(a | b) if a | b else 1.0 for a, b in pairs])
