"""What there is before anything is done: the checkpoint and its plan, and what `--out` holds of each release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from flagrelease.console import Counter, counted
from flagrelease.convert.planning.plan import Plan, make_plan
from flagrelease.convert.planning.target import Target
from flagrelease.convert.request import ConversionRequest, checkpoint_of, make_request
from flagrelease.convert.running.outdated import Held, look
from flagrelease.convert.takers import require_takers
from flagrelease.errors import FlagReleaseError, ResourceError
from flagrelease.records.release import read_release
from flagrelease.records.source_identity import identify
from flagrelease.run.request import RunRequest
from flagrelease.run.steps import ChipRun


@dataclass(frozen=True, slots=True)
class Conversions:
    """What the conversion would make.

    Attributes:
        asked: the request, for the releases that can be planned.
        held: what is there of each, by the name of its folder.
    """

    asked: ConversionRequest
    plan: Plan
    held: dict[str, Held]


@dataclass(frozen=True, slots=True)
class Survey:
    """All that a run knows before it does something.

    Attributes:
        source: the checkpoint's folder; None where the run begins behind the stages that need it and it is not here.
        identity: of the checkpoint, its digest; None likewise.
        conversions: None where nothing is to be converted.
        runs: the releases of the chips, in the order of the recipe.
    """

    source: Path | None
    identity: str | None
    conversions: Conversions | None
    runs: list[ChipRun]


def survey(request: RunRequest) -> Survey:
    """Read the headers of the checkpoint, place every byte, and compare what there is with it. Nothing is written.

    Raises:
        FlagReleaseError: no release at all can be planned or found.
    """
    return _planned(request) if request.wants("convert") else _brought(request)


def _planned(request: RunRequest) -> Survey:
    with counted(f"reading the headers of {request.checkpoint or request.path}, placing every byte") as counter:
        headers = partial(counter, "headers read")
        asked = make_request(request.path, request.checkpoint, [], request.chips, None, told=headers)
        plan, refusals = _plan(request, asked, counter)
    kept = {release.target for release in plan.releases}
    runs, held = [], {}
    by_folder = {release.target.folder: release for release in plan.releases}
    chips = {target: [one.chip.id for one in asked.chips if one.target == target] for target in asked.targets}
    for wanted, one in zip(request.wanted, asked.chips, strict=True):
        run = ChipRun(wanted, request.out / one.target.folder)
        runs.append(run)
        if one.target not in kept:
            run.refuse("convert", refusals[one.target])
            continue
        name = one.target.folder
        try:
            if name not in held:
                held[name] = look(run.folder, plan, by_folder[name], chips[one.target])
            if held[name].state == "finished":
                run.found = read_release(run.folder)
        except FlagReleaseError as error:
            run.refuse("convert", error)
    possible = replace(asked, targets=tuple(t for t in asked.targets if t in kept))
    return Survey(asked.source.files.folder, asked.source.identity.digest, Conversions(possible, plan, held), runs)


def _plan(
    request: RunRequest, asked: ConversionRequest, counter: Counter
) -> tuple[Plan, dict[Target, FlagReleaseError]]:
    """The plan of all releases; if there is none, of those that can be planned, and why not of the others."""
    try:
        return _one_plan(request, asked, asked.targets, counter), {}
    except FlagReleaseError:
        refusals: dict[Target, FlagReleaseError] = {}
        for target in asked.targets:
            try:
                _one_plan(request, asked, [target], counter)
            except FlagReleaseError as error:  # noqa: PERF203 - one release in a short loop
                refusals[target] = error
        possible = [target for target in asked.targets if target not in refusals]
        if not possible or not refusals:  # nothing can be planned, or each alone but not together
            raise
        return _one_plan(request, asked, possible, counter), refusals


def _one_plan(request: RunRequest, asked: ConversionRequest, targets: Sequence[Target], counter: Counter) -> Plan:
    told = partial(counter, "releases planned")
    plan = make_plan(asked.source, targets, asked.options, asked.provenance, told)
    only = replace(asked, targets=tuple(targets), chips=tuple(one for one in asked.chips if one.target in set(targets)))
    require_takers(plan, only)
    return plan


def _brought(request: RunRequest) -> Survey:
    """Releases that were converted before, here or on another machine."""
    source: Path | None = None
    if request.wants("verify"):
        source = checkpoint_of(request.recipe, request.path, request.checkpoint)
    elif request.checkpoint is not None or request.recipe.source.path is not None:
        named = checkpoint_of(request.recipe, request.path, request.checkpoint)
        source = named if named.is_dir() else None
    runs = []
    for wanted in request.wanted:
        run = ChipRun(wanted, request.out / wanted.spec.name)
        runs.append(run)
        try:
            run.found = read_release(run.folder)
        except FlagReleaseError as error:
            where = "run with --until verify where the checkpoint is, and bring the folder"
            run.refuse(request.begin, ResourceError(f"{error}; {where}"))
    return Survey(source, None if source is None else identify(source).digest, None, runs)
