"""What a run needs later, looked at before the conversion, which takes hours."""

from __future__ import annotations

from collections.abc import Iterator

from flagrelease.chips.table import Chip, get_chip
from flagrelease.errors import ResourceError, UsageError
from flagrelease.run.baseline import needs_model
from flagrelease.run.request import RunRequest
from flagrelease.validate.baseline import BaselineFolder
from flagrelease.validate.logits.documents import read_documents
from flagrelease.validate.stages.port import find_device
from flagrelease.validate.stages.preconditions import require_data, require_packages


def require_needs(request: RunRequest) -> None:
    """Refuse a run that a later stage would refuse whatever the conversion gives.

    Raises:
        UsageError: a file of data, documents or the signing key is missing or malformed, `--baseline` holds none, or
            the rules do not count what `--device` computes.
        ResourceError: packages that run a model are missing (`--until verify` does without), or `--device` is.
    """
    rules = request.recipe.validation
    if unknown := sorted(request.data.keys() - rules.benchmarks.keys()):
        raise UsageError(f"--data {unknown[0]}: the rules have no such benchmark")
    for option, path in (("--documents", request.documents), ("--signing-key", request.signing_key)):
        if path is not None and not path.is_file():
            raise UsageError(f"{option} {path}: no such file")
    if not _runs_a_model(request):
        return
    require_packages(rules)
    require_data(request.data, rules)
    if request.documents is not None:
        read_documents(request.documents)
    if request.baseline is not None:
        BaselineFolder.open(request.baseline)
    if request.device != "auto":
        for chip in _chips(request):
            if isinstance(reason := _device(request, chip), str):
                raise ResourceError(f"{chip.id} cannot be validated with --device {request.device}: {reason}")


def absent_devices(request: RunRequest) -> Iterator[str]:
    """The chips whose own device this machine lacks, as sentences.

    Their files and weights are proved here all the same; `flagrelease validate` on their machines does the rest.
    """
    if _runs_a_model(request) and request.device == "auto":
        for chip in _chips(request):
            if isinstance(reason := _device(request, chip), str):
                yield f"{chip.id}: the stages that run the model are left to its own machine ({reason})"


def _runs_a_model(request: RunRequest) -> bool:
    return request.wants("validate") and needs_model(request.recipe.validation)


def _chips(request: RunRequest) -> list[Chip]:
    return [get_chip(name) for name in request.chips or request.recipe.releases]


def _device(request: RunRequest, chip: Chip) -> object:
    """The device, or why there is none, in words."""
    return find_device(chip, request.device, anywhere=request.recipe.validation.device == "any")
