"""What a weight lost, compared with the manifest's figures and with what the recipe allows to be lost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from flagrelease.records.manifest import MANIFEST_NAME, ElementCounts, LossRecord, Manifest
from flagrelease.verify.proof import WeightProof
from flagrelease.verify.result import Finding

# Sums of squares may be added in another order than here.
_TOLERANCE = 1e-12


def problems(proof: WeightProof, counts: ElementCounts, manifest: Manifest) -> Iterator[Finding]:
    """What is untrue or not allowed of one weight's losses. Asked for after its last row."""
    name, loss = proof.weight.spec.name, proof.loss()
    for untrue in _differences(manifest.losses.get(name), loss):
        yield Finding(tensor=name, file=MANIFEST_NAME, rule=untrue)
    allowed = manifest.options.get("lossy_repack")
    if counts.lost == 0 or allowed == "allow":
        return
    if loss is None or not isinstance(allowed, dict):
        held = "FP8" if loss is None else "a scale for each row"
        rule = f"{held} cannot hold {counts.lost} elements exactly, and options.lossy_repack is not 'allow'"
        yield Finding(tensor=name, rule=rule)
        return
    inexact, limit = loss.rows - loss.exact_rows, _limit(allowed)
    if inexact / loss.rows > limit:
        rule = f"{inexact} of {loss.rows} rows are inexact, options.lossy_repack allows {limit:.3%}"
        yield Finding(tensor=name, rule=rule)


def _limit(allowed: dict[str, Any]) -> float:
    limit = allowed.get("largest_share_of_inexact_rows")
    return float(limit) if isinstance(limit, int | float) else 0.0


def _differences(recorded: LossRecord | None, counted: LossRecord | None) -> Iterator[str]:
    if recorded is None or counted is None:
        if recorded is not None:
            yield "losses has an entry, but the second encoder finds no inexact row"
        elif counted is not None:
            inexact = counted.rows - counted.exact_rows
            yield f"losses has no entry, but the second encoder finds {inexact} inexact rows of {counted.rows}"
        return
    theirs, ours = recorded.model_dump(), counted.model_dump()
    for field, value in ours.items():
        tolerance = _TOLERANCE if isinstance(value, float) else 0.0
        if not math.isclose(theirs[field], value, rel_tol=tolerance, abs_tol=0.0):
            yield f"losses.{field} is {theirs[field]!r}, the second encoder finds {value!r}"
