"""The last stage: the publication of one release of a chip, or its plan; nothing where the same is there already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.hubs.registry import hub_by_scheme
from flagrelease.publish.listing import compare
from flagrelease.publish.publication import Publication
from flagrelease.publish.publish import publish
from flagrelease.publish.upload.client import open_hub
from flagrelease.records.changes import in_a_sentence
from flagrelease.run.records import Published, differing, read_record, stamps_of, write_record
from flagrelease.run.request import RunRequest
from flagrelease.run.steps import ChipRun, RunStep
from flagrelease.validate.stages.request import default_out
from flagrelease.validate.stages.run import REPORT_NAME


def publish_chip(request: RunRequest, run: ChipRun) -> RunStep:
    """Publish a validated release for its chip.

    Raises:
        FlagReleaseError: as publishing does.
    """
    publication = _publish(request, run, yes=False)
    where = f"{publication.repo} as {publication.version}"
    kind = "folder" if publication.hub is None else publication.hub.scheme
    name = f"publish-{kind}-{run.release.folder.name}-{run.chip.id}"
    why = _why(publication, read_record(Published, request.out, name))
    if not why:
        return RunStep("done", where)
    if not request.yes:
        return RunStep("planned", f"{where}; --yes does it", why=why)
    _publish(request, run, yes=True)
    write_record(_record(publication), request.out, name)
    return RunStep("done", where, why=why)


def _publish(request: RunRequest, run: ChipRun, *, yes: bool) -> Publication:
    assert request.target is not None
    on_hub = hub_by_scheme(request.target) is not None
    return publish(
        run.release.folder,
        run.chip.id,
        request.destination(run.wanted.repo),
        repo=run.wanted.repo if on_hub else None,
        named=run.wanted.repo,
        private=request.private,
        yes=yes,
        report=default_out(run.release.folder, run.chip) / REPORT_NAME,
        signing_key=request.signing_key,
        replace=request.replace,
    ).publication


def _why(publication: Publication, before: Published | None) -> str:
    """Why there is something to publish; empty if the target holds it, which a hub is asked for."""
    if before is None:
        return "it was not published from here yet"
    if (before.place, before.private) != (_place(publication), publication.private):
        return f"it was published elsewhere before ({before.place})"
    if changed := _changed(before.digests, publication.digests):
        return f"what is published changed ({in_a_sentence(changed)})"
    if publication.hub is not None:
        return _missing_on_hub(publication, publication.hub)
    if touched := differing(before.files, stamps_of(Path(publication.repo), publication.digests)):
        return f"{touched[0]} was written there since"
    return ""


def _changed(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Files that differ; what changes with every other file, statement and signature, is named last."""
    return sorted(
        (path for path in was.keys() | now.keys() if was.get(path) != now.get(path)),
        key=lambda path: (path.endswith((".intoto.json", ".sig")), path),
    )


def _missing_on_hub(publication: Publication, hub: Hub) -> str:
    """What the hub lacks under the tag or on its default branch, by its listing."""
    client = open_hub(hub)
    for revision in (publication.version, None):
        named = revision or "the default branch"
        listed = client.list_files(publication.repo, client.pin(publication.repo, revision))
        if difference := compare(publication.by_path, listed):
            return f"{named} of {publication.repo} holds something else ({difference})"
    return ""


def _place(publication: Publication) -> str:
    if publication.hub is None:
        return str(Path(publication.repo).resolve())
    return f"{publication.hub.scheme}:{publication.repo}"


def _record(publication: Publication) -> Published:
    files = stamps_of(Path(publication.repo), publication.digests) if publication.hub is None else {}
    return Published(
        place=_place(publication),
        private=publication.private,
        version=publication.version,
        digests=publication.digests,
        files=files,
    )
