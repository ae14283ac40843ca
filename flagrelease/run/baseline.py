"""What the native model gives, which the validations of all chips are compared with: recorded once, if at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flagrelease.console import Display
from flagrelease.records.rules import ValidationRules
from flagrelease.run.on_ranks import run_on_ranks, shared_options
from flagrelease.run.request import RunRequest
from flagrelease.run.steps import ChipRun
from flagrelease.validate.stages.record import Recording, record
from flagrelease.validate.stages.stage import FILE_STAGES


def needs_model(rules: ValidationRules) -> bool:
    """Whether a pass needs a stage that runs the model."""
    return not set(rules.stages) <= set(FILE_STAGES)


def baseline_folder(request: RunRequest) -> Path:
    """Made elsewhere, or here."""
    return request.baseline or request.out / "baseline"


def record_baseline(request: RunRequest, runs: Sequence[ChipRun], source: Path) -> None:
    """Record what the native model gives, unless that was made elsewhere, on as many ranks as the first chip's release.

    Raises:
        FlagReleaseError: as recording does.
    """
    if request.baseline is not None or not needs_model(request.recipe.validation):
        return
    folder, ranks = baseline_folder(request), runs[0].release.ranks
    if ranks > 1:
        words = ["baseline", "record", str(source), "--out", str(folder), *shared_options(request)]
        words += [] if request.documents is None else ["--documents", str(request.documents)]
        run_on_ranks(ranks, words)
        return
    recording = Recording(
        source=source,
        out=folder,
        rules=request.recipe.validation,
        data=request.data,
        documents=request.documents,
        device=request.device,
        operators=request.operators,
    )
    with Display() as display:
        record(recording, display)
