"""The validation of one chip: how it is asked for, and where it is run."""

from __future__ import annotations

import shlex
from pathlib import Path

from flagrelease.console import Display
from flagrelease.errors import ResourceError
from flagrelease.run.baseline import baseline_folder, needs_model
from flagrelease.run.judgement import judge
from flagrelease.run.on_ranks import run_on_ranks, shared_options
from flagrelease.run.request import RunRequest
from flagrelease.run.steps import ChipRun, RunStep
from flagrelease.validate.stages.preconditions import prepare
from flagrelease.validate.stages.request import ValidationRequest, default_out, rules_of
from flagrelease.validate.stages.run import validate
from flagrelease.validate.stages.stage import FILE_STAGES


def validation_request(request: RunRequest, run: ChipRun, source: Path) -> ValidationRequest:
    """The validation of one chip, as `flagrelease validate` would be asked for it.

    Raises:
        UsageError: the release was made by another recipe.
    """
    rules = rules_of(request.path, request.recipe, run.release, run.chip)
    with_model = needs_model(rules)
    return ValidationRequest(
        release=run.release,
        chip=run.chip,
        rules=rules,
        out=default_out(run.release.folder, run.chip),
        recipe=request.path,
        source=source,
        baseline=baseline_folder(request) if with_model else None,
        data=request.data,
        until=None if with_model else "weights",
        device=request.device,
        operators=request.operators,
        workers=request.workers,
    )


def validate_chip(request: RunRequest, run: ChipRun) -> RunStep:
    """Validate one chip's release: in this process, or on as many ranks as the release is cut for.

    Raises:
        FlagReleaseError: it could not be run.
    """
    asked, ranks = run.asked, run.release.ranks
    if ranks == 1 or asked.until in FILE_STAGES:  # files are read by one process
        with Display() as display:
            validate(prepare(asked), display)
        return judge(asked)
    words = ["validate", str(asked.release.folder), "--chip", run.chip.id, "--source", str(asked.source)]
    words += ["--baseline", str(asked.baseline), "--out", str(asked.out), *shared_options(request)]
    if ranks > run.chip.cards_per_node:
        raise ResourceError(
            f"{run.release.folder.name} takes {ranks} ranks, a node of {run.chip.id} has {run.chip.cards_per_node} "
            f"cards: run `flagrelease {shlex.join(words)}` by torchrun on its nodes, then this command again"
        )
    run_on_ranks(ranks, words)
    return judge(asked)
