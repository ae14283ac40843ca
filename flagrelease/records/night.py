"""`OUT/nights/BEGAN.json`: what one `flagrelease run` found and did, for the page that is read in the morning.

A run writes it when it begins and again after each step, so that a run that was killed has left a record too: one
without `ended`. Times stand here only; manifests and reports hold none. docs/run.md describes the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flagrelease.errors import VerificationError, first_problem
from flagrelease.records.manifest import ToolRecord
from flagrelease.records.report import Verdict

NIGHTS, HISTORY = "nights", "history"  # folders of a run's `--out`
StepStatus = Literal["done", "planned", "failed", "cannot-tell", "stopped"]
NightVerdict = Literal["running", "nothing-to-do", "done", "planned", "failed", "cannot-tell", "stopped"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class NightStep(_Strict):
    """One stage of one release of a chip.

    Attributes:
        kept: it was found finished and nothing was done.
        why: why it was done, or done again; empty if it was kept.
        detail: how it ended, in a sentence.
        exit_code: 5 of a verdict against the release, 0 unless the later stages could not be run.
        seconds: of what was done; chips that share a conversion or a verification all have its whole time.
        bytes_per_second: where bytes are what a stage works on (convert, verify), and it did something.
    """

    status: StepStatus
    kept: bool
    why: str
    detail: str
    exit_code: int = 0
    seconds: float = Field(ge=0)
    bytes_per_second: float | None = None


class NightChip(_Strict):
    """One release of one chip.

    Attributes:
        release: `FORMAT-LAYOUT`, a folder of `--out`.
        bytes, manifest_sha256: of the finished release; null where there is none.
        verdict, report_sha256: of `validation/RELEASE-CHIP/report.json` at the end of the run, if there is one.
        history: folders of `--out` that took, in this run, what was there before: reports and manifests.
        steps: by stage, in the order of the stages; one that was not reached or not asked for is absent.
    """

    chip: str
    release: str
    stack: str | None
    repository: str
    bytes: int | None
    manifest_sha256: str | None
    verdict: Verdict | None
    report_sha256: str | None
    history: tuple[str, ...]
    steps: dict[str, NightStep]


class Night(_Strict):
    """One run.

    Attributes:
        began, ended: UTC, as `2026-11-30T19:55:12Z`; a run without an end was killed or goes on.
        commit: of flagrelease's own source, where that is known.
        recipe, recipe_sha256: name and digest of the recipe's file.
        source: identity of the checkpoint; null where the run began behind the stages that read it.
        first, last: the stages that were asked for.
        target: where publications went: `hf`, `modelscope` or a folder.
        verdict: of the whole run; `summary` is the same in words.
        error: why the run as a whole was refused.
        notes: what else the run had to say, such as a notification that failed.
    """

    schema_version: Literal[1] = 1
    began: str
    ended: str | None = None
    tool: ToolRecord
    commit: str | None
    recipe: str
    recipe_sha256: str
    model: str
    source: str | None = None
    first: str
    last: str
    target: str | None
    verdict: NightVerdict = "running"
    summary: str = ""
    exit_code: int | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()
    chips: tuple[NightChip, ...] = ()

    def to_json(self) -> bytes:
        """The bytes of the record, one newline at the end."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def read_night(path: Path) -> Night:
    """Read a record.

    Raises:
        VerificationError: it cannot be read or does not follow the contract.
    """
    try:
        return Night.model_validate_json(path.read_bytes())
    except OSError as error:
        raise VerificationError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise VerificationError(f"{path}: {first_problem(error)}") from error
