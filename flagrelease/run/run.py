"""`flagrelease run`: the stages of all chips in order; each stage resumes from what it left on the disk."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from flagrelease.errors import FlagReleaseError
from flagrelease.run.baseline import needs_model, record_baseline
from flagrelease.run.conversion import convert
from flagrelease.run.judgement import earlier_judgement
from flagrelease.run.needs import absent_devices, require_needs
from flagrelease.run.publication import publish_chip
from flagrelease.run.request import RunRequest, StageName
from flagrelease.run.steps import ChipRun, RunStep
from flagrelease.run.validation import validate_chip, validation_request
from flagrelease.run.verification import verify


def run_recipe(request: RunRequest) -> list[ChipRun]:
    """Bring each release of each chip as far as asked. What one cannot have does not keep the others from it.

    Raises:
        FlagReleaseError: something that a later stage needs is missing, or the conversion, which all of them share,
            cannot be done.
    """
    require_needs(request)
    for absent in absent_devices(request):
        _say(absent)
    source, runs = convert(request)
    if request.wants("verify"):
        _ask(request, runs, source)
        _verify(runs)
    if request.wants("validate"):
        _validate(request, runs, source)
    if request.wants("publish"):
        _each(runs, "publish", lambda run: publish_chip(request, run))
    return runs


def _ask(request: RunRequest, runs: list[ChipRun], source: Path) -> None:
    for run in runs:
        try:
            run.validation = validation_request(request, run, source)
        except FlagReleaseError as error:  # noqa: PERF203 - one release in a short loop
            run.refuse("verify", error)


def _verify(runs: list[ChipRun]) -> None:
    releases: dict[Path, list[ChipRun]] = {}
    for run in runs:
        if run.goes_on:
            releases.setdefault(run.release.folder, []).append(run)
    for release, sharing in releases.items():
        _say(f"verify {release.name} for {', '.join(run.chip.id for run in sharing)}")
        try:
            verify(sharing)
        except FlagReleaseError as error:
            for run in sharing:
                run.refuse("verify", error)


def _validate(request: RunRequest, runs: list[ChipRun], source: Path) -> None:
    """The native model is run only if there is a chip to compare with it."""
    pending = [run for run in runs if run.goes_on and not _settled(run)]
    if not pending:
        return
    if request.baseline is None and needs_model(request.recipe.validation):
        _say("baseline of the native model")
    try:
        record_baseline(request, pending, source)
    except FlagReleaseError as error:
        for run in pending:
            run.refuse("validate", error)
    _each(pending, "validate", lambda run: validate_chip(request, run))


def _settled(run: ChipRun) -> bool:
    try:
        step = earlier_judgement(run.asked)
    except FlagReleaseError as error:
        run.refuse("validate", error)
        return True
    if step is not None:
        run.steps["validate"] = step
    return step is not None


def _each(runs: list[ChipRun], stage: StageName, work: Callable[[ChipRun], RunStep]) -> None:
    for run in runs:
        if not run.goes_on:
            continue
        _say(f"{stage} {run.release.folder.name} for {run.chip.id}")
        try:
            run.steps[stage] = work(run)
        except FlagReleaseError as error:
            run.refuse(stage, error)


def _say(what: str) -> None:
    print(f"== {what}", file=sys.stderr, flush=True)
