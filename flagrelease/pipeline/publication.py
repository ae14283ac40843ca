"""The last stage: the publication of one chip, or its plan."""

from __future__ import annotations

from flagrelease.chips import repo_name
from flagrelease.pipeline.request import RunRequest
from flagrelease.pipeline.steps import ChipRun, Step
from flagrelease.publish.publish import publish
from flagrelease.validate.pipeline.request import default_out
from flagrelease.validate.pipeline.run import REPORT_NAME


def publish_chip(request: RunRequest, run: ChipRun) -> Step:
    """Publish a validated release for its chip.

    Raises:
        FlagReleaseError: as publishing does.
    """
    outcome = publish(
        run.release,
        run.chip.id,
        request.destination(repo_name(request.recipe.model, run.chip)),
        private=request.private,
        yes=request.yes,
        report=default_out(run.release, run.chip) / REPORT_NAME,
        signing_key=request.signing_key,
    )
    publication = outcome.publication
    where = f"{publication.repo} as {publication.version}"
    return Step("planned", f"{where}; --yes does it") if outcome.revision is None else Step("done", where)
