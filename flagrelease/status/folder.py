"""`look_at`: everything in an output folder, tied together by the digests of manifests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from flagrelease.chips.table import load_chips
from flagrelease.errors import FlagReleaseError, UsageError, first_problem
from flagrelease.publish.hubs.names import STATEMENT_NAME
from flagrelease.publish.records import default_report
from flagrelease.records.chip_releases import ChipRelease, releases_of
from flagrelease.records.manifest import MANIFEST_NAME, Manifest
from flagrelease.records.recipe import Recipe
from flagrelease.records.release import ReleaseOnDisk, read_release
from flagrelease.records.report import proves_weights
from flagrelease.status.parts import PartState, parts_in
from flagrelease.status.publications import publications
from flagrelease.status.unfinished import Progress, is_unfinished, progress
from flagrelease.status.validations import Validation, validation

Conversion = Literal["complete", "unfinished", "damaged", "missing"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class ReleaseState(_Record):
    """One release folder. `problem` says what is damaged: files that are absent or of another size."""

    name: str
    conversion: Conversion
    model: str | None = None
    bytes: int | None = None
    manifest_sha256: str | None = None
    progress: Progress | None = None
    problem: str | None = None


class ChipState(_Record):
    """One release for one chip.

    Attributes:
        stack: that it is made for.
        validation: of its report; `stages` are the stages by verdict, finished ones only where there is no report.
        weights_proved: whether a stage says that the weights are those of the source.
        published: where, as `folder (signed)` or `hf OWNER/NAME, by the record of a run`.
        missing: what is left to do, as commands or words.
    """

    chip: str
    release: str
    stack: str | None
    conversion: Conversion
    validation: Validation
    stages: dict[str, str]
    weights_proved: bool
    published: tuple[str, ...]
    missing: tuple[str, ...]


class FolderStatus(_Record):
    """The whole folder. `parts` are those of a conversion that machines share, until they are merged; `remarks` are
    things that belong to nothing: reports and publications of other manifests."""

    folder: str
    releases: tuple[ReleaseState, ...]
    parts: tuple[PartState, ...]
    chips: tuple[ChipState, ...]
    baseline: tuple[str, ...]
    remarks: tuple[str, ...]


def look_at(folder: Path) -> FolderStatus:
    """Look at an output folder, or at the one that a release is in. Nothing is written and no lock is taken.

    Raises:
        UsageError: no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    if (folder / MANIFEST_NAME).is_file() or is_unfinished(folder):
        folder = folder.absolute().parent
    remarks: list[str] = []
    states, finished = [], {}
    for path in sorted(one for one in folder.iterdir() if one.is_dir()):
        if (path / STATEMENT_NAME).is_file():
            continue
        if (path / MANIFEST_NAME).is_file():
            state, release = _finished(path)
            states.append(state)
            if release is not None:
                finished[path.name] = release
        elif is_unfinished(path):
            states.append(ReleaseState(name=path.name, conversion="unfinished", progress=progress(path)))
    published = list(publications(folder, finished, remarks))
    chips = [_chip(folder, one, states, finished, published, remarks) for one in _wanted(finished, remarks)]
    remarks += _stray_reports(folder, chips)
    return FolderStatus(
        folder=str(folder),
        releases=tuple(states),
        parts=parts_in(folder),
        chips=tuple(chips),
        baseline=_baseline(folder / "baseline"),
        remarks=tuple(dict.fromkeys(remarks)),
    )


def _finished(path: Path) -> tuple[ReleaseState, ReleaseOnDisk | None]:
    try:
        release = read_release(path)
    except FlagReleaseError as error:
        return ReleaseState(name=path.name, conversion="damaged", problem=str(error)), None
    problem = _first_problem(path, release.manifest)
    state = ReleaseState(
        name=path.name,
        conversion="complete" if problem is None else "damaged",
        model=release.manifest.model,
        bytes=sum(file.size for file in release.manifest.files),
        manifest_sha256=release.manifest_sha256,
        problem=problem,
    )
    return state, release


def _first_problem(path: Path, manifest: Manifest) -> str | None:
    for file in manifest.files:
        try:
            size = (path / file.path).stat().st_size
        except OSError:
            return f"{file.path} is in the manifest, but not there"
        if size != file.size:
            return f"{file.path} has {size:,} bytes; the manifest says {file.size:,}"
    return None


def _wanted(finished: dict[str, ReleaseOnDisk], remarks: list[str]) -> list[ChipRelease]:
    """What the recipes in the manifests ask for, each release of each chip once: also what nobody has converted yet."""
    wanted: dict[tuple[str, str], ChipRelease] = {}
    for name, release in finished.items():
        if release.manifest.recipe is None:
            remarks.append(f"{name}: converted without a recipe, so it is for no chip in particular")
            continue
        try:
            recipe = Recipe.model_validate(release.manifest.recipe)
            chips = load_chips().values()
            asked = [one for chip in chips for one in releases_of(recipe.model, recipe.releases, chip, recipe.owner)]
        except (ValidationError, FlagReleaseError) as error:
            problem = first_problem(error) if isinstance(error, ValidationError) else str(error)
            remarks.append(f"{name}: the recipe in its manifest cannot be read ({problem}), so its chips are not known")
            continue
        for one in asked:
            wanted.setdefault((one.chip.id, one.spec.name), one)
    return list(wanted.values())


def _chip(
    folder: Path,
    one: ChipRelease,
    states: list[ReleaseState],
    finished: dict[str, ReleaseOnDisk],
    published: list[tuple[str, str, str]],
    remarks: list[str],
) -> ChipState:
    name, chip = one.spec.name, one.chip.id
    state = next((state for state in states if state.name == name), None)
    release = finished.get(name)
    digest = "" if release is None else release.manifest_sha256
    path = default_report(folder / name, chip)
    judged, stages = validation(path, digest)
    proved = any(map(proves_weights, stages))
    if judged == "of another manifest":
        remarks.append(f"{path.parent.relative_to(folder)} is of another manifest than {name} has now")
    where = tuple(text for of_chip, of_digest, text in published if (of_chip, of_digest) == (chip, digest))
    conversion: Conversion = "missing" if state is None else state.conversion
    return ChipState(
        chip=chip,
        release=name,
        stack=one.spec.stack,
        conversion=conversion,
        validation=judged,
        stages={stage.name: stage.verdict for stage in stages},
        weights_proved=proved,
        published=where,
        missing=tuple(_missing(conversion, judged, proved, where)),
    )


def _missing(conversion: Conversion, validation: Validation, proved: bool, where: tuple[str, ...]) -> Iterator[str]:
    if conversion != "complete":
        yield "convert"
    if validation != "pass":
        yield "validate"
    elif not proved:
        yield "proof of the weights (validate with --source)"
    if not where:
        yield "publish"


def _stray_reports(folder: Path, chips: Iterable[ChipState]) -> Iterator[str]:
    """Validations of a release or chip that no recipe here asks for."""
    known = {f"{one.release}-{one.chip}" for one in chips}
    for path in sorted((folder / "validation").glob("*/report.json")):
        if path.parent.name not in known:
            yield f"{path.relative_to(folder)} is of no release of this folder's recipes"


def _baseline(folder: Path) -> tuple[str, ...]:
    """Its finished parts, as `validate/baseline.py` lays them out."""
    names = {
        "logits": folder / "logits" / "baseline.json",
        "continuations": folder / "continuations.json",
        "behaviour": folder / "behaviour.json",
    }
    answers = [f"benchmarks/{path.stem}" for path in sorted((folder / "benchmarks").glob("*.json"))]
    return (*(name for name, path in names.items() if path.is_file()), *answers)
