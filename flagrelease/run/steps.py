"""What is known of each chip at the end: how far it came, and why not further."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from flagrelease.chips.table import Chip
from flagrelease.errors import FlagReleaseError, VerificationError
from flagrelease.records.chip_releases import ChipRelease
from flagrelease.records.release import ReleaseOnDisk
from flagrelease.run.request import StageName
from flagrelease.validate.stages.request import ValidationRequest

Status = Literal["done", "planned", "failed", "cannot-tell"]
CANNOT_TELL = 7  # exit code of `validate`


@dataclass(frozen=True, slots=True)
class RunStep:
    """One stage of one chip. `exit_code` is 0 unless the later stages of the chip cannot run."""

    status: Status
    detail: str
    exit_code: int = 0


@dataclass(slots=True)
class ChipRun:
    """One release of one chip on its way. A stage without a step was not reached or not asked for.

    Attributes:
        wanted: what the recipe says of it.
        validation: how the release is validated; None until that is asked for, or if it cannot be.
    """

    wanted: ChipRelease
    release: ReleaseOnDisk
    validation: ValidationRequest | None = None
    steps: dict[StageName, RunStep] = field(default_factory=dict)

    @property
    def chip(self) -> Chip:
        """The chip."""
        return self.wanted.chip

    @property
    def asked(self) -> ValidationRequest:
        """The validation of a chip that has one."""
        assert self.validation is not None
        return self.validation

    @property
    def goes_on(self) -> bool:
        """No step failed."""
        return not any(step.exit_code for step in self.steps.values())

    def refuse(self, stage: StageName, error: FlagReleaseError) -> None:
        """Record what one chip cannot have. The other chips are not affected."""
        self.steps[stage] = RunStep("failed", f"{error.kind}: {error}", error.exit_code)

    def document(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "chip": self.chip.id,
            "release": str(self.release.folder),
            "stack": self.wanted.spec.stack,
            "repository": self.wanted.repo,
            "steps": {name: {"status": step.status, "detail": step.detail} for name, step in self.steps.items()},
        }


def failed(detail: str) -> RunStep:
    """A step that ended with a verdict against the release."""
    return RunStep("failed", detail, VerificationError.exit_code)
