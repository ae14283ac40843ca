"""One number for each stage, for readers who look only at the top of the page."""

from __future__ import annotations

from collections.abc import Sequence

from flagrelease.records.report import Benchmark, Stage
from flagrelease.records.rules import StageName
from flagrelease.validate.behaviour.stage import BehaviourFigures
from flagrelease.validate.invariance.figures import InvarianceFigures
from flagrelease.validate.long_context.figures import LongContextFigures
from flagrelease.validate.page.benchmark_panels import differences
from flagrelease.validate.page.forest import signed
from flagrelease.validate.page.limits_panel import nearest_limit
from flagrelease.validate.page.weights_panels import CheckFigures
from flagrelease.validate.preflight.check import PreflightFigures

# Stages of checks: the check whose count is shown, and what it counts.
_COUNTED: dict[StageName, tuple[str, str]] = {"integrity": ("files", "files"), "weights": ("tensors", "tensors")}


def key_figure(stage: Stage, benchmarks: Sequence[Benchmark]) -> str:
    """The stage's number, such as "61 files" or "GPQA Diamond −0.60"; empty if it has none that says something."""
    if stage.verdict in ("not-run", "not-informative"):
        return ""
    if stage.name == "benchmarks":
        return ", ".join(f"{row.name} {signed(row.value)}" for row in differences(benchmarks))
    if not stage.figures:
        return ""
    if stage.name == "logits":
        nearest = nearest_limit(stage)
        return "" if nearest is None else f"nearest limit used to {nearest:.0%}"
    if stage.name == "long-context":
        found = LongContextFigures.model_validate(stage.figures, strict=False)
        return f"{found.chip.score:.1f}%, native {found.native.score:.1f}%"
    if stage.name == "behaviour":
        worst = max(BehaviourFigures.model_validate(stage.figures).rates, key=lambda rate: rate.difference)
        return f"{worst.name}: {signed(worst.difference)} points"
    if stage.name == "preflight":
        listed = PreflightFigures.model_validate(stage.figures).checks
        return f"{sum(check.verdict == 'pass' for check in listed)} of {len(listed)} checks"
    if stage.name == "invariance":
        rows = InvarianceFigures.model_validate(stage.figures).circumstances
        return f"{sum(row.verdict == 'pass' for row in rows)} of {len(rows)} circumstances"
    if stage.name not in _COUNTED:
        return ""
    checks = CheckFigures.model_validate(stage.figures).checks
    if failed := sum(check.failed for check in checks):
        return f"{failed:,} finding{'s' if failed > 1 else ''}"
    name, unit = _COUNTED[stage.name]
    return "".join(f"{check.checked:,} {unit}" for check in checks if check.name == name)
