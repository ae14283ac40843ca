"""The sections about the stages that read files: the checks of `verify`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from flagrelease.console import human_bytes
from flagrelease.page.panel import Panel, Table
from flagrelease.records.report import Stage
from flagrelease.verify.result import Check


class CheckFigures(BaseModel):
    """`figures` of the stages integrity and weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checks: tuple[Check, ...]


def check_panels(stage: Stage) -> list[Panel]:
    """List every check with what it looked at, then the first findings."""
    if not stage.figures:
        return []
    checks = CheckFigures.model_validate(stage.figures).checks
    rows: list[tuple[str, ...]] = [
        (check.name, check.status, f"{check.checked:,}", human_bytes(check.bytes), f"{check.failed:,}", check.detail)
        for check in checks
    ]
    table = Table(("check", "outcome", ">looked at", ">bytes", ">findings", "what"), rows)
    passed = sum(check.status == "pass" for check in checks)
    panels = [Panel("Checks", f"{passed} of {len(checks)} passed.", table=table, folded=False)]
    found: list[tuple[str, ...]] = [(check.name, str(finding)) for check in checks for finding in check.findings]
    if found:
        total = sum(check.failed for check in checks)
        words = (
            f"{total:,} in all; the first {len(found)} are shown, each with tensor, file and place where it has them."
        )
        panels.append(Panel("Findings", words, table=Table(("check", "finding"), found), folded=False))
    return panels
