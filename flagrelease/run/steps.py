"""What is known of each chip at the end: how far it came, and why not further."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flagrelease.chips.table import Chip
from flagrelease.errors import FlagReleaseError
from flagrelease.run.request import StageName

Status = Literal["done", "planned", "failed", "cannot-tell"]


@dataclass(frozen=True, slots=True)
class RunStep:
    """One stage of one chip. `exit_code` is 0 unless it keeps the chip from going on."""

    status: Status
    detail: str
    exit_code: int = 0


@dataclass(slots=True)
class ChipRun:
    """One chip on its way. A stage without a step was not reached or not asked for."""

    chip: Chip
    release: Path
    steps: dict[StageName, RunStep] = field(default_factory=dict)

    @property
    def goes_on(self) -> bool:
        """No step failed."""
        return not any(step.exit_code for step in self.steps.values())

    def refuse(self, stage: StageName, error: FlagReleaseError) -> None:
        """Record what one chip cannot have; the others go on."""
        self.steps[stage] = RunStep("failed", f"{error.kind}: {error}", error.exit_code)

    def document(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "chip": self.chip.id,
            "release": str(self.release),
            "steps": {name: {"status": step.status, "detail": step.detail} for name, step in self.steps.items()},
        }
