"""What a run needs later, looked at before the conversion, which takes hours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flagrelease.chips.table import Chip
from flagrelease.convert.request import checkpoint_of
from flagrelease.errors import ResourceError, UsageError
from flagrelease.records.source_identity import SourceIdentity
from flagrelease.run.baseline import baseline_folder, needs_model, outdated_parts
from flagrelease.run.request import RunRequest
from flagrelease.validate.baseline import BaselineFolder
from flagrelease.validate.exams.marking.marking import can_be_marked
from flagrelease.validate.logits.documents import read_documents
from flagrelease.validate.stages.port import find_device
from flagrelease.validate.stages.preconditions import (
    open_exams,
    read_exams,
    read_native,
    require_logits,
    require_packages,
)


def require_files(request: RunRequest) -> None:
    """Refuse a run whose recipe or options name what is not there, before anything is read.

    Raises:
        UsageError: the recipe has no such chip, there is no checkpoint, or a file of an option is missing.
    """
    request.recipe.chosen(request.chips)
    if request.wants("verify"):  # before a hub is asked, which takes half a minute where there is no network
        folder = checkpoint_of(request.recipe, request.path, request.checkpoint)
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such checkpoint folder")
    rules = request.recipe.validation
    if unknown := sorted(request.data.keys() - rules.benchmarks.keys()):
        raise UsageError(f"--data {unknown[0]}: the rules have no such benchmark")
    for option, path in (("--documents", request.documents), ("--signing-key", request.signing_key)):
        if path is not None and not path.is_file():
            raise UsageError(f"{option} {path}: no such file")


def require_needs(request: RunRequest, chips: Sequence[Chip]) -> None:
    """Refuse a run that validating `chips` would refuse later, whatever the conversion gives.

    Raises:
        UsageError: a file of data or documents is malformed, `--baseline` holds none, or the rules do not count what
            `--device` computes.
        NetworkError: the hub does not give the questions of a benchmark that no `--data` is for.
        ResourceError: packages that run a model are missing (`--until verify` does without), or `--device` is.
    """
    if not chips or not _runs_a_model(request):
        return
    rules = request.recipe.validation
    require_packages(rules)
    open_exams(_to_be_asked(request, chips), read_exams(request.data, rules), rules)
    if request.documents is not None:
        read_documents(request.documents)
    if request.baseline is not None:
        BaselineFolder.open(request.baseline)
    if request.device != "auto":
        for chip in chips:
            if isinstance(reason := _device(request, chip), str):
                raise ResourceError(f"{chip.id} cannot be validated with --device {request.device}: {reason}")


def require_baseline(request: RunRequest, source: Path, identity: SourceIdentity, chips: Sequence[Chip]) -> None:
    """Refuse a baseline that no release of this checkpoint can be compared with, and documents that it cannot read.

    A part of `OUT/baseline` that was recorded for something else is recorded again, so it is not looked at.

    Args:
        source: the checkpoint's folder.
        identity: the checkpoint's.
        chips: that will be validated.

    Raises:
        VerificationError: the baseline is of another model, under other rules, or damaged.
        UsageError: the documents of a baseline that would be recorded cannot be used with this model.
    """
    if not chips or not _runs_a_model(request) or outdated_parts(request, identity.digest):
        return
    if request.baseline is not None and all(isinstance(_device(request, chip), str) for chip in chips):
        return  # nothing is compared here, but on the machines of the chips
    from flagrelease.validate.logits.record import read_set

    rules, baseline = request.recipe.validation, BaselineFolder(baseline_folder(request))
    read_native(baseline, rules, identity.digest, read_exams(request.data, rules), source)
    if baseline.logits_record.is_file():
        require_logits(baseline, rules.logits, identity, source)
    elif request.baseline is None:
        read_set(source, request.documents, rules.logits.replay)


def absent_devices(request: RunRequest, chips: Sequence[Chip]) -> Iterator[str]:
    """The chips whose own device this machine lacks, as sentences.

    Their files and weights are proved here all the same; `flagrelease validate` on their machines does the rest.
    """
    if _runs_a_model(request) and request.device == "auto":
        for chip in chips:
            if isinstance(reason := _device(request, chip), str):
                yield f"{chip.id}: the stages that run the model are left to its own machine ({reason})"


def _to_be_asked(request: RunRequest, chips: Sequence[Chip]) -> list[str]:
    """The benchmarks that this run asks, as far as that is known: of the source, or of a chip that this machine has.

    Where this run's own baseline has answers already, the questions have been here before.
    """
    rules = request.recipe.validation.benchmarks
    names = [name for name, each in rules.items() if can_be_marked(each.kind, None)]  # a run has no sandbox
    if request.baseline is None:
        recorded = BaselineFolder(baseline_folder(request))
        return [name for name in names if not recorded.answers(name).is_file()]
    return names if any(not isinstance(_device(request, chip), str) for chip in chips) else []


def _runs_a_model(request: RunRequest) -> bool:
    return request.wants("validate") and needs_model(request.recipe.validation)


def _device(request: RunRequest, chip: Chip) -> object:
    """The device, or why there is none, in words."""
    return find_device(chip, request.device, anywhere=request.recipe.validation.device == "any")
