"""What there is of a validation: its report, or the stages that are finished, and whether they are of this manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from flagrelease.errors import FlagReleaseError
from flagrelease.records.report import Stage, parse_report

Validation = Literal["pass", "fail", "cannot-tell", "unfinished", "of another manifest", "unreadable", "missing"]


def validation(path: Path, digest: str) -> tuple[Validation, tuple[Stage, ...]]:
    """What there is of a validation, and the stages of it that are of this manifest."""
    try:
        report = parse_report(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError):
        return _unfinished(path.parent / "state", digest)
    except (OSError, FlagReleaseError):
        return "unreadable", ()
    if report.manifest_sha256 != digest:
        return "of another manifest", ()
    return report.verdict, report.stages


class _Binding(BaseModel):
    release: str


class _Begun(BaseModel):
    binding: _Binding


class _Finished(BaseModel):
    stage: Stage


def _unfinished(state: Path, digest: str) -> tuple[Validation, tuple[Stage, ...]]:
    """A validation without a report, as after `run --until verify`: its finished stages."""
    if not state.is_dir():
        return "missing", ()
    try:
        if _Begun.model_validate_json((state / "begun.json").read_bytes()).binding.release != digest:
            return "of another manifest", ()
        paths = [path for path in sorted(state.glob("*.json")) if path.name != "begun.json"]
        return "unfinished", tuple(_Finished.model_validate_json(path.read_bytes()).stage for path in paths)
    except (OSError, ValidationError):
        return "unreadable", ()
