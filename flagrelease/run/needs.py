"""What a run needs later, looked at before the conversion, which takes hours."""

from __future__ import annotations

from flagrelease.errors import UsageError
from flagrelease.run.request import RunRequest
from flagrelease.run.validation import baseline_folder, needs_model
from flagrelease.validate.logits.documents import read_documents
from flagrelease.validate.stages.baseline import BaselineFolder
from flagrelease.validate.stages.preconditions import require_data, require_packages


def require_needs(request: RunRequest) -> None:
    """Refuse a run that a later stage would refuse whatever the conversion gives.

    Raises:
        UsageError: a file of data, documents or the signing key is missing or malformed, or `--baseline` holds none.
        ResourceError: the packages that run the native model are missing, and its baseline is to be recorded here.
    """
    rules = request.recipe.validation
    if unknown := sorted(request.data.keys() - rules.benchmarks.keys()):
        raise UsageError(f"--data {unknown[0]}: the rules have no such benchmark")
    if request.signing_key is not None and not request.signing_key.is_file():
        raise UsageError(f"--signing-key {request.signing_key}: there is no such file")
    if not (request.wants("validate") and needs_model(rules)):
        return
    require_data(request.data, rules)
    if request.documents is not None:
        read_documents(request.documents)
    if request.baseline is not None:
        BaselineFolder.open(request.baseline)
    elif not baseline_folder(request).is_dir():
        require_packages(rules)
