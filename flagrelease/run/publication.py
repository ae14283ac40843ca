"""The last stage: the publication of one release of a chip, or its plan."""

from __future__ import annotations

from flagrelease.publish.publish import publish
from flagrelease.run.request import RunRequest
from flagrelease.run.steps import ChipRun, RunStep
from flagrelease.validate.stages.request import default_out
from flagrelease.validate.stages.run import REPORT_NAME


def publish_chip(request: RunRequest, run: ChipRun) -> RunStep:
    """Publish a validated release for its chip.

    Raises:
        FlagReleaseError: as publishing does.
    """
    outcome = publish(
        run.release.folder,
        run.chip.id,
        request.destination(run.wanted.repo),
        private=request.private,
        yes=request.yes,
        report=default_out(run.release.folder, run.chip) / REPORT_NAME,
        signing_key=request.signing_key,
    )
    publication = outcome.publication
    where = f"{publication.repo} as {publication.version}"
    return RunStep("planned", f"{where}; --yes does it") if outcome.revision is None else RunStep("done", where)
