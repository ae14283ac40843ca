"""A publication in numbers and words, before anything is done."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flagrelease.console import human_bytes
from flagrelease.publish.limits import Figure, commits, figures, limit_advice, limit_problems
from flagrelease.publish.online import OnlineReport
from flagrelease.publish.publication import Publication

_SHOWN = 20  # problems for people; --json has all


def plan_document(publication: Publication) -> dict[str, Any]:
    """What would be done, for scripts."""
    return {
        "schema_version": 1,
        "target": "folder" if publication.hub is None else publication.hub.name,
        "repository": publication.repo,
        "visibility": publication.visibility,
        "licence": publication.records.licence,
        "version": publication.version,
        "chip": publication.records.chip.id,
        "validated": publication.records.report is not None,
        "weights_proved": publication.records.weights_proved,
        "bytes": publication.bytes,
        "commits": commits(publication),
        "limits": [asdict(figure) for figure in figures(publication)],
        "problems": limit_problems(publication),
        "advice": limit_advice(publication),
        "files": [{"path": file.path, "bytes": file.size, "sha256": file.sha256} for file in publication.files],
    }


def plan_text(publication: Publication) -> str:
    """What would be done, for people."""
    document = plan_document(publication)
    where = "folder" if publication.hub is None else f"repository on {publication.hub.name}"
    lines = [
        f"{where}: {publication.repo}",
        f"visibility {publication.visibility}, licence {document['licence']}, tag {publication.version}",
        f"{len(publication.files)} files, {publication.bytes:,} bytes ({human_bytes(publication.bytes)}), "
        f"{document['commits']} commits",
    ]
    lines += [f"  {_beside_its_limit(figure)}" for figure in figures(publication)]
    if not document["validated"]:
        lines.append("NOT VALIDATED: there is no report, and the card will say so")
    elif not document["weights_proved"]:
        lines.append("WEIGHTS NOT PROVED: the validation did not compare them with the source; the card will say so")
    lines += [f"  {file.size:>18,}  {file.sha256[:12]}  {file.path}" for file in publication.files]
    lines += [f"advice: {advice}" for advice in document["advice"]]
    lines += [f"REFUSED: {problem}" for problem in document["problems"]]
    return "\n".join(lines)


def _beside_its_limit(figure: Figure) -> str:
    most = "the hub sets no limit" if figure.limit is None else f"the hub takes {figure.limit:,}"
    over = "  OVER" if figure.limit is not None and figure.value > figure.limit else ""
    return f"{figure.what}: {figure.value:,}; {most}{over}"


def online_text(report: OnlineReport) -> str:
    """What a check of a published release found, for people."""
    signature = {"checked": "signature checked", "not-checked": "signed; --key checks by whom", "none": "not signed"}
    version = "NOT PUBLISHED: nobody has validated it" if report.version is None else f"version {report.version}"
    lines = [
        f"{report.hub}: {report.repo} at {report.revision}",
        f"{report.files} files, {report.bytes:,} bytes ({human_bytes(report.bytes)}), {version}",
        f"visibility {report.visibility}, licence {report.licence}, {signature[report.signature]}",
    ]
    if report.tensors:
        lines.append(f"{report.tensors} tensors read, {human_bytes(report.tensor_bytes)} (drawn by {report.seed})")
    lines += [f"  {problem}" for problem in report.problems[:_SHOWN]]
    if len(report.problems) > _SHOWN:
        lines.append(f"  and {len(report.problems) - _SHOWN} more (--json has them all)")
    return "\n".join([*lines, "whole and unchanged" if report.passed else "NOT what it says"])
