"""What is known of each chip at the end: how far it came, what was done for it and why, and why not further."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

from flagrelease.chips.table import Chip
from flagrelease.errors import FlagReleaseError, VerificationError
from flagrelease.records.chip_releases import ChipRelease
from flagrelease.records.night import StepStatus
from flagrelease.records.release import ReleaseOnDisk
from flagrelease.run.request import StageName
from flagrelease.validate.stages.request import ValidationRequest

CANNOT_TELL = 7  # exit code of `validate`


@dataclass(frozen=True, slots=True)
class RunStep:
    """One stage of one chip.

    Attributes:
        exit_code: 0 unless the later stages of the chip cannot run.
        why: why something was done; empty if the stage was found finished.
        seconds, bytes_per_second: of what was done.
    """

    status: StepStatus
    detail: str
    exit_code: int = 0
    why: str = ""
    seconds: float = 0.0
    bytes_per_second: float | None = None

    def document(self) -> dict[str, Any]:
        """For scripts."""
        return {"status": self.status, "detail": self.detail, "why": self.why, "seconds": round(self.seconds, 3)}


@dataclass(slots=True)
class ChipRun:
    """One release of one chip on its way. A stage without a step was not reached or not asked for.

    Attributes:
        wanted: what the recipe says of it.
        folder: of the release, in `--out`.
        found: the finished release; None until there is one.
        validation: how the release is validated; None until that is asked for, or if it cannot be.
        history: folders that took what was there before.
    """

    wanted: ChipRelease
    folder: Path
    found: ReleaseOnDisk | None = None
    validation: ValidationRequest | None = None
    steps: dict[StageName, RunStep] = field(default_factory=dict)
    history: list[Path] = field(default_factory=list)

    @property
    def chip(self) -> Chip:
        """The chip."""
        return self.wanted.chip

    @property
    def release(self) -> ReleaseOnDisk:
        """The release of a chip that has one."""
        assert self.found is not None
        return self.found

    @property
    def asked(self) -> ValidationRequest:
        """The validation of a chip that has one."""
        assert self.validation is not None
        return self.validation

    @property
    def goes_on(self) -> bool:
        """No step failed."""
        return not any(step.exit_code for step in self.steps.values())

    @property
    def was_idle(self) -> bool:
        """Everything was found finished."""
        return self.goes_on and all(step.status == "done" and not step.why for step in self.steps.values())

    def refuse(self, stage: StageName, error: FlagReleaseError, why: str = "") -> None:
        """Record what one chip cannot have. The other chips are not affected."""
        self.steps[stage] = RunStep("failed", f"{error.kind}: {error}", error.exit_code, why)

    def document(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "chip": self.chip.id,
            "release": str(self.folder),
            "stack": self.wanted.spec.stack,
            "repository": self.wanted.repo,
            "steps": {name: step.document() for name, step in self.steps.items()},
        }


def failed(detail: str) -> RunStep:
    """A step that ended with a verdict against the release."""
    return RunStep("failed", detail, VerificationError.exit_code)


@contextmanager
def timed(runs: Sequence[ChipRun], stage: StageName, read: int | None = None) -> Iterator[None]:
    """Note how long the stage took in the steps that the chips have afterwards, and `read` bytes a second."""
    begun = monotonic()
    try:
        yield
    finally:
        seconds = monotonic() - begun
        for run in runs:
            step = run.steps.get(stage)
            if step is not None and step.why:
                speed = read / seconds if read and seconds and step.status == "done" else None
                run.steps[stage] = replace(step, seconds=seconds, bytes_per_second=speed)
