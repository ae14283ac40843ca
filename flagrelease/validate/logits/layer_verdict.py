"""Errors of layers to measures, the first step and what the page draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from flagrelease.records.rules import LayerLimits
from flagrelease.validate.logits.judge import Measure, exactly
from flagrelease.validate.logits.localise import ERRORS, Errors, ErrorStep, first_step, medians


@dataclass(frozen=True, slots=True)
class LayerVerdict:
    """All positions of all documents: errors of the port and of the noise floor, what is judged, the first step."""

    errors: Errors
    floor: Errors
    measures: tuple[Measure, ...]
    step: ErrorStep | None

    def figures(self, reference: str) -> dict[str, JsonValue]:
        """For the report.

        `curves`: by kind of error (`localise.layer_errors`) the medians by layer, of the port and of the floor; experts
        and entries are means. `step`: layer, half, before, behind; or null. `positions`: how many were looked at.
        """
        step = self.step
        return {
            "reference": reference,
            "positions": int(self.errors["streams"].shape[1]),
            "curves": {kind: {"port": _curve(self.errors, kind), "floor": _curve(self.floor, kind)} for kind in ERRORS},
            "step": None
            if step is None
            else {"layer": step.layer, "half": step.half, "before": step.before, "behind": _finite(step.behind)},
            "measures": [measure.to_json() for measure in self.measures],
        }


def judge_layers(errors: Errors, floor: Errors, limits: LayerLimits) -> LayerVerdict:
    """Medians over positions against the limits; experts by their mean, since nearly all positions agree."""
    ours, noise = _worst(errors), _worst(floor)

    def at_least(name: str, limit: float) -> Measure:
        return exactly(name, ours[name], at_least=1 - max(1 - limit, limits.floors * (1 - noise[name])))

    measures = (
        exactly("last_error", ours["last_error"], at_most=max(limits.last_error, limits.floors * noise["last_error"])),
        at_least("early_cosine", limits.early_cosine),
        at_least("late_cosine", limits.late_cosine),
        at_least("experts", limits.experts),
    )
    return LayerVerdict(errors, floor, measures, first_step(errors, floor, limits))


def side_by_side(documents: Sequence[Errors]) -> Errors:
    """The positions of all documents in one table."""
    return {kind: np.concatenate([errors[kind] for errors in documents], axis=1) for kind in ERRORS}


def _worst(errors: Errors) -> dict[str, float]:
    """What is judged, by the name of its measure."""
    cosine = medians(errors, "cosine")
    half = len(cosine) // 2
    return {
        "last_error": float(medians(errors, "streams")[-1]),
        "early_cosine": float(cosine[: half or 1].min()),
        "late_cosine": float(cosine[half:].min()),
        "experts": float(errors["experts"].mean(-1).min()),
    }


def _curve(errors: Errors, kind: str) -> list[JsonValue]:
    if kind in ("experts", "entries"):
        rows = errors[kind]
        means = [float(row[np.isfinite(row)].mean()) if np.isfinite(row).any() else np.nan for row in rows]
        return [_finite(x) for x in means]
    return [_finite(float(x)) for x in medians(errors, kind)]


def _finite(x: float) -> float | None:
    return x if np.isfinite(x) else None
