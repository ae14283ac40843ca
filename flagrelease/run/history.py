"""`OUT/history`: what is no longer valid is kept there, named by when it was put away and by its digest."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from pathlib import Path

from flagrelease.diff.operand import LARGEST_DOCUMENT
from flagrelease.durable.files import refused, sync_folder, write_whole
from flagrelease.durable.folder import LOCK_NAME
from flagrelease.durable.lock import FileLock
from flagrelease.records.manifest import MANIFEST_NAME, Manifest
from flagrelease.records.night import HISTORY
from flagrelease.validate.stages.run import REPORT_NAME
from flagrelease.validate.stages.state import CONTROL


def stamp() -> str:
    """The time in UTC to a millisecond, as it stands in names of files, which sort by it: 20261130T195512.037Z."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%f}"[:-3] + "Z"


def put_away_validation(out: Path, folder: Path) -> Path:
    """Move the folder of a validation into the history, with all that is in it; returns where it is.

    Raises:
        ResourceError: another process validates there, or the system refuses.
    """
    report = folder / REPORT_NAME
    place = _place(out, folder.name, report if report.is_file() else folder / CONTROL / "begun.json")
    lock = FileLock(folder / CONTROL / LOCK_NAME, folder)
    try:
        _move(folder, place)
    finally:
        lock.close()
    return place


def put_away_manifest(out: Path, release: Path, manifest: Manifest) -> Path:
    """Copy the manifest of a release that will be made again, and what `flagrelease diff` compares by key.

    These are its small JSON files. Returns the folder that holds them.

    Raises:
        ResourceError: the system refuses.
    """
    place = _place(out, release.name, release / MANIFEST_NAME)
    for file in manifest.files:
        small = file.path.endswith(".json") and file.size <= LARGEST_DOCUMENT
        if small and (release / file.path).is_file():
            write_whole(place / file.path, (release / file.path).read_bytes())
    write_whole(place / MANIFEST_NAME, (release / MANIFEST_NAME).read_bytes())
    return place


def put_away_part(out: Path, part: Path) -> Path:
    """Move a part of the baseline, a file or a folder, that is recorded again.

    Raises:
        ResourceError: the system refuses.
    """
    place = _place(out, "baseline", part if part.is_file() else part / "baseline.json") / part.name
    _move(part, place)
    return place


def of_release(out: Path, name: str) -> list[Path]:
    """What the history holds under a name, the newest first."""
    folder = out / HISTORY / name
    return sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []


def _place(out: Path, name: str, by: Path) -> Path:
    """A new name; one that exists, put away in the same second with the same content, gets a number."""
    digest = hashlib.sha256(by.read_bytes() if by.is_file() else b"").hexdigest()[:12]
    first = place = out / HISTORY / name / f"{stamp()}-{digest}"
    number = 2
    while place.exists():
        place, number = first.with_name(f"{first.name}-{number}"), number + 1
    return place


def _move(path: Path, place: Path) -> None:
    with refused(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
        sync_folder(place.parent)
        sync_folder(path.parent)
