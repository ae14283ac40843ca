"""`flagrelease run`: the stages of all chips in order. What is finished and still true is left alone; why something is
done again is said."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from flagrelease.chips.table import Chip
from flagrelease.errors import FlagReleaseError, ResourceError
from flagrelease.run.baseline import baseline_folder, needs_model, outdated_parts, record_baseline
from flagrelease.run.conversion import convert
from flagrelease.run.judgement import earlier_judgement
from flagrelease.run.needs import absent_devices, require_baseline, require_files, require_needs
from flagrelease.run.publication import publish_chip
from flagrelease.run.request import RunRequest, StageName
from flagrelease.run.steps import ChipRun, RunStep, timed
from flagrelease.run.survey import Survey, survey
from flagrelease.run.validation import validate_chip, validation_request
from flagrelease.run.verification import file_inputs, require_proved, verify
from flagrelease.validate.baseline import BaselineFolder
from flagrelease.validate.stages.former import Inputs, read_former

Seen = Callable[[Survey], None]


def run_recipe(request: RunRequest, seen: Seen = lambda found: None) -> list[ChipRun]:
    """Bring each release of each chip as far as asked. What one cannot have does not keep the others from it.

    Args:
        request: what is asked for.
        seen: is told what is known so far, before anything is written and after every stage of a release.

    Raises:
        FlagReleaseError: something that a later stage needs is missing, or no release can be planned.
    """
    require_files(request)
    found = survey(request)
    _require(request, found)
    seen(found)
    if found.conversions is not None:
        convert(request, found.conversions, found.runs)
        seen(found)
    if request.wants("verify") or request.wants("validate"):
        _ask(request, found)
    if request.wants("verify"):
        _verify(request, found, seen)
    if request.wants("validate"):
        _validate(request, found, seen)
    if request.wants("publish"):
        _each(found, found.runs, "publish", lambda run: publish_chip(request, run), seen)
    return found.runs


def _require(request: RunRequest, found: Survey) -> None:
    """Look at what the validations that are left will need, before the conversion, which takes hours."""
    if not request.wants("validate"):
        return
    chips = _unsettled(request, found)
    require_needs(request, chips)
    for absent in absent_devices(request, chips):
        _say(absent)
    if found.conversions is not None:
        source = found.conversions.plan.source
        assert source.files.folder is not None, "--checkpoint of run is a folder"
        require_baseline(request, source.files.folder, source.identity, chips)


def _unsettled(request: RunRequest, found: Survey) -> list[Chip]:
    """The chips that have a release without a verdict that answers what is asked now."""
    renewed = bool(found.identity and outdated_parts(request, found.identity))
    pending = [run for run in found.runs if run.goes_on and (renewed or not _is_settled(request, found, run))]
    return list({run.chip.id: run.chip for run in pending}.values())


def _is_settled(request: RunRequest, found: Survey, run: ChipRun) -> bool:
    if run.found is None:
        return False
    try:
        return earlier_judgement(validation_request(request, run, found.source), _inputs(run)) is not None
    except FlagReleaseError:  # it is refused, with the reason, at the stage that meets it
        return False


def _inputs(run: ChipRun) -> Inputs:
    return file_inputs(run.release.manifest.source.identity)


def _ask(request: RunRequest, found: Survey) -> None:
    stage: StageName = "verify" if request.wants("verify") else "validate"
    for run in found.runs:
        if not run.goes_on:
            continue
        try:
            run.validation = validation_request(request, run, found.source)
            read_former(run.validation.out)  # one that is damaged must not stop the chips that share the release
            if stage == "validate":
                require_proved(run, request.out)
        except FlagReleaseError as error:
            run.refuse(stage, error)


def _verify(request: RunRequest, found: Survey, seen: Seen) -> None:
    releases: dict[Path, list[ChipRun]] = {}
    for run in found.runs:
        if run.goes_on:
            releases.setdefault(run.folder, []).append(run)
    for release, sharing in releases.items():
        _say(f"verify {release.name} for {', '.join(run.chip.id for run in sharing)}")
        size = sum(file.size for file in sharing[0].release.manifest.files)
        try:
            with timed(sharing, "verify", size):
                verify(sharing, request.out, sharing[0].release.manifest.source.identity)
        except FlagReleaseError as error:
            for run in sharing:
                run.refuse("verify", error)
        seen(found)


def _validate(request: RunRequest, found: Survey, seen: Seen) -> None:
    """The native model is run only if there is a chip to compare with it."""
    renewed = bool(found.identity and outdated_parts(request, found.identity))
    pending = [run for run in found.runs if run.goes_on and (renewed or not _settled(run))]
    if not pending:
        return
    try:
        _baseline(request, found, pending)
    except FlagReleaseError as error:
        for run in pending:
            run.refuse("validate", error)
    pending = [run for run in pending if run.goes_on and not (renewed and _settled(run))]
    _each(found, pending, "validate", lambda run: validate_chip(request, run, _inputs(run)), seen)


def _baseline(request: RunRequest, found: Survey, pending: Sequence[ChipRun]) -> None:
    if request.baseline is not None or not needs_model(request.recipe.validation):
        return
    if found.source is None or found.identity is None:
        folder = baseline_folder(request)
        if not BaselineFolder(folder).parts():
            raise ResourceError(
                f"{folder}: there is no baseline, and the checkpoint that it is recorded from is not here; bring the "
                "folder from where it was recorded, or name it with --baseline"
            )
        return
    _say("baseline of the native model")
    record_baseline(request, pending, found.source, found.identity)


def _settled(run: ChipRun) -> bool:
    try:
        step = earlier_judgement(run.asked, _inputs(run))
    except FlagReleaseError as error:
        run.refuse("validate", error)
        return True
    if step is not None:
        run.steps["validate"] = step
    return step is not None


def _each(
    found: Survey, runs: Sequence[ChipRun], stage: StageName, work: Callable[[ChipRun], RunStep], seen: Seen
) -> None:
    for run in runs:
        if not run.goes_on:
            continue
        _say(f"{stage} {run.folder.name} for {run.chip.id}")
        try:
            with timed([run], stage):
                run.steps[stage] = work(run)
        except FlagReleaseError as error:
            run.refuse(stage, error)
        seen(found)


def _say(what: str) -> None:
    print(f"== {what}", file=sys.stderr, flush=True)
