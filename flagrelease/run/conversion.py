"""The first stage: all releases of the asked chips in one pass over the checkpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from flagrelease.console import counted, human_bytes, progress
from flagrelease.convert.claims import gather_claims
from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.recheck import check_finished
from flagrelease.convert.request import make_request
from flagrelease.convert.running.conversion import choose_lookup
from flagrelease.convert.running.conversion import convert as run_conversion
from flagrelease.convert.summary import summarise
from flagrelease.records.manifest import MANIFEST_NAME
from flagrelease.records.release import read_release
from flagrelease.run.needs import require_baseline
from flagrelease.run.request import RunRequest
from flagrelease.run.steps import ChipRun, RunStep


def convert(request: RunRequest) -> tuple[Path, list[ChipRun]]:
    """The checkpoint's folder, and the finished releases of each chip, in the order of the recipe.

    Raises:
        FlagReleaseError: as converting does; a later call resumes from what was written.
    """
    with counted(f"reading the headers of {request.checkpoint or request.path}, placing every byte") as counter:
        headers, releases_planned = partial(counter, "headers read"), partial(counter, "releases planned")
        asked = make_request(request.path, request.checkpoint, [], request.chips, None, told=headers)
        plan = make_plan(asked.source, asked.targets, asked.options, asked.provenance, releases_planned)
        summarise(plan, asked, request.workers, request.out).require_takers()
    require_baseline(request, asked.source.folder, asked.source.identity)
    claims = gather_claims(asked, request.source_digests, ask=True)
    folders = [release.target.folder for release in plan.releases]
    finished = [folder for folder in folders if (request.out / folder / MANIFEST_NAME).is_file()]
    with progress("convert", plan.bytes_to_write) as report:
        manifests = run_conversion(
            plan,
            request.out,
            workers=request.workers,
            lookup=choose_lookup("auto"),
            progress=report.to,
            claims=claims,
        )
    check_finished(plan, manifests, finished, claims, request.workers)
    runs = []
    releases = {target: read_release(request.out / target.folder) for target in asked.targets}
    for wanted, one in zip(request.wanted, asked.chips, strict=True):
        target = one.target
        run = ChipRun(wanted, releases[target])
        size = sum(file.size for file in run.release.manifest.files)
        run.steps["convert"] = RunStep("done", f"{target.folder}, {human_bytes(size)}")
        runs.append(run)
    return asked.source.folder, runs
