"""The first stage: all releases of the asked chips in one pass over the checkpoint, as far as they are not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flagrelease.console import human_bytes, progress, say
from flagrelease.convert.claims import gather_claims
from flagrelease.convert.planning.plan import Plan, ReleasePlan, make_plan
from flagrelease.convert.recheck import check_finished
from flagrelease.convert.running.conversion import choose_lookup
from flagrelease.convert.running.conversion import convert as run_conversion
from flagrelease.convert.running.earlier import refuse_other_source
from flagrelease.convert.running.journal import tidy
from flagrelease.convert.running.rerecord import record_again
from flagrelease.durable.files import refused
from flagrelease.errors import FlagReleaseError, ResourceError
from flagrelease.records.release import read_release
from flagrelease.run.history import put_away_manifest
from flagrelease.run.request import RunRequest
from flagrelease.run.steps import ChipRun, RunStep, timed
from flagrelease.run.survey import Conversions
from flagrelease.source.digests import Claims


def convert(request: RunRequest, conversions: Conversions, runs: Sequence[ChipRun]) -> None:
    """Make the releases that are not there, and record the step of each chip.

    If they cannot be made together, each is made alone, so that one does not keep the others from being made.

    Raises:
        FlagReleaseError: what is stated of the checkpoint's files contradicts itself, or is not of this checkpoint.
    """
    claims = gather_claims(conversions.asked, request.source_digests, ask=True)
    todo = []
    for release in conversions.plan.releases:
        sharing = [run for run in runs if run.folder.name == release.target.folder and run.goes_on]
        if not sharing:
            continue
        try:
            if _make_way(request, conversions, release, sharing, claims):
                todo.append(release)
        except FlagReleaseError as error:
            _refuse(sharing, error)
    todo = _within_limit(request, todo, runs)
    if todo:
        _convert(request, conversions, todo, runs, claims)
    made = {run.folder.name: run for run in runs if run.found is not None}
    if finished := [name for name, run in made.items() if not run.steps["convert"].why]:
        manifests = {name: run.release.manifest for name, run in made.items()}
        check_finished(conversions.plan, manifests, finished, claims, request.workers)


def _make_way(
    request: RunRequest, conversions: Conversions, release: ReleasePlan, sharing: Sequence[ChipRun], claims: Claims
) -> bool:
    """Whether the release is to be converted; one that is finished, or only recorded again, has its step then."""
    folder = sharing[0].folder
    held = conversions.held[folder.name]
    _remove(_removed(folder))  # of a run that was killed
    if held.state == "outdated":
        if not request.replace:
            raise ResourceError(
                f"{folder}: {held.why}; give --replace to remove it and convert again, or another --out"
            )
        if held.manifest is not None:
            for run in sharing:
                run.history.append(put_away_manifest(request.out, folder, held.manifest))
        with refused(folder):
            folder.rename(_removed(folder))
        _remove(_removed(folder))
    elif held.state in ("finished", "same-bytes"):
        tidy(folder, release)
        refuse_other_source(folder, conversions.plan.source, claims)
        if held.state == "same-bytes":
            assert held.manifest is not None
            for run in sharing:
                run.history.append(put_away_manifest(request.out, folder, held.manifest))
            record_again(folder, conversions.plan, release, held.manifest)
        _finish(sharing, held.why and f"{held.why}; its files stay, the manifest is written again")
        return False
    return True


def _removed(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.removed")


def _remove(folder: Path) -> None:
    if folder.exists():
        with refused(folder):
            shutil.rmtree(folder)


def _within_limit(request: RunRequest, todo: list[ReleasePlan], runs: Sequence[ChipRun]) -> list[ReleasePlan]:
    """The releases that `--disk-limit` leaves room for, in their order; the chips of the others are refused."""
    if request.disk_limit is None:
        return todo
    taken, fitting = disk_used(request.out), []
    for release in todo:
        folder = request.out / release.target.folder
        needed = max(0, release.size - disk_used(folder))
        if taken + needed > request.disk_limit:
            said = (
                f"{human_bytes(needed)} are still to be written for {release.target.folder}, {human_bytes(taken)} of "
            )
            sharing = [run for run in runs if run.folder == folder and run.goes_on]
            _refuse(sharing, ResourceError(f"{said}--disk-limit {human_bytes(request.disk_limit)} are taken"))
        else:
            fitting.append(release)
            taken += needed
    return fitting


def disk_used(folder: Path) -> int:
    """Bytes of the files below a folder; files that are links to one content count once, one that vanishes does not.

    Raises:
        OSError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    seen: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            with suppress(FileNotFoundError):  # another run writes its records here and renames them
                status = Path(parent, name).lstat()
                seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())


def _convert(
    request: RunRequest, conversions: Conversions, todo: list[ReleasePlan], runs: Sequence[ChipRun], claims: Claims
) -> None:
    names = {release.target.folder for release in todo}
    sharing = [run for run in runs if run.folder.name in names and run.goes_on]
    plan = conversions.plan
    if len(todo) < len(plan.releases):
        plan = _plan_of(conversions, todo)
    try:
        with timed(sharing, "convert", plan.bytes_to_write):
            _one_pass(request, plan, sharing, conversions, claims)
    except FlagReleaseError as error:
        if len(todo) == 1:
            _refuse(sharing, error)
            return
        say(f"{error}. Each of the {len(todo)} releases is now converted by itself")
        for release in todo:
            _convert(request, conversions, [release], sharing, claims)


def _plan_of(conversions: Conversions, todo: Sequence[ReleasePlan]) -> Plan:
    asked = conversions.asked
    return make_plan(asked.source, [release.target for release in todo], asked.options, asked.provenance)


def _one_pass(
    request: RunRequest, plan: Plan, sharing: Sequence[ChipRun], conversions: Conversions, claims: Claims
) -> None:
    with progress("convert", plan.bytes_to_write) as report:
        run_conversion(
            plan,
            request.out,
            workers=request.workers,
            lookup=choose_lookup("auto"),
            progress=report.to,
            claims=claims,
        )
    for run in sharing:
        _finish([run], conversions.held[run.folder.name].why)


def _finish(sharing: Sequence[ChipRun], why: str) -> None:
    release = read_release(sharing[0].folder)
    size = human_bytes(sum(file.size for file in release.manifest.files))
    for run in sharing:
        run.found = release
        run.steps["convert"] = RunStep("done", f"{run.folder.name}, {size}", why=why)


def _refuse(sharing: Sequence[ChipRun], error: FlagReleaseError) -> None:
    for run in sharing:
        run.refuse("convert", error)
