"""Where releases are published: folders by their statements, hubs by the records of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from flagrelease.errors import FlagReleaseError
from flagrelease.publish.hubs.names import SIGNATURE_NAME, STATEMENT_NAME
from flagrelease.publish.hubs.registry import hub_by_scheme
from flagrelease.records.night import NIGHTS, read_night
from flagrelease.records.provenance import read_statement
from flagrelease.records.release import ReleaseOnDisk, read_release

_DEEPEST = 2  # folders below DIR in which publications are looked for


def publications(
    folder: Path, finished: Mapping[str, ReleaseOnDisk], remarks: list[str]
) -> Iterator[tuple[str, str, str]]:
    """(chip, digest of the manifest, where): of folders by their statements, of hubs by the records of runs."""
    digests = {release.manifest_sha256 for release in finished.values()}
    for depth in range(1, _DEEPEST + 1):
        for statement in sorted(folder.glob("/".join(["*"] * depth) + f"/{STATEMENT_NAME}")):
            where = statement.parent.relative_to(folder)
            try:
                release = read_release(statement.parent)
                stated = read_statement(statement.read_bytes(), release.manifest, release.manifest_sha256)
            except FlagReleaseError as error:
                remarks.append(f"{where}: a publication that cannot be read: {error}")
                continue
            if release.manifest_sha256 not in digests:
                remarks.append(f"{where} is a publication of another manifest than any release here has")
            signed = " (signed)" if (statement.parent / SIGNATURE_NAME).is_file() else ""
            yield stated.chip, release.manifest_sha256, f"{where}{signed}"
    for path in sorted((folder / NIGHTS).glob("*.json")):
        try:
            night = read_night(path)
        except FlagReleaseError as error:
            remarks.append(f"{path.relative_to(folder)}: {error}")
            continue
        for one in night.chips:
            step = one.steps.get("publish")
            if (
                step is not None
                and step.status == "done"
                and one.manifest_sha256
                and hub_by_scheme(night.target or "") is not None
            ):
                said = f"{night.target} {one.repository}, by the record of the run of {night.began}"
                yield one.chip, one.manifest_sha256, said
