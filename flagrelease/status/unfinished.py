"""How far a conversion is that has not finished, by its journal, which is read without disturbing whoever writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

WORK = Path(".flagrelease")
_LOCK, _BEGUN, _JOURNAL = "lock", "begun.json", "journal.jsonl"
_LOCKS = Path("/proc/locks")


class Progress(BaseModel):
    """What is on the disk.

    Attributes:
        written: bytes of unfinished files whose digest is recorded.
        total: bytes of all files of the release; null where the conversion was begun by a version that did not say it.
        place: where its finished files go, whose bytes count as written; null if they stay here.
        working: whether a process of this machine holds the folder; null where the kernel does not tell.
    """

    model_config = ConfigDict(frozen=True)

    written: int
    total: int | None
    files: int
    working: bool | None
    place: str | None = None

    @property
    def share(self) -> float | None:
        """Of the bytes, 0 to 1."""
        return None if not self.total else min(1.0, self.written / self.total)


def is_unfinished(folder: Path) -> bool:
    """Whether a conversion was begun here; with a manifest beside it, it is complete."""
    return (folder / WORK / _BEGUN).is_file()


def progress(folder: Path) -> Progress:
    """How far the conversion into `folder` is. What cannot be read counts as not done."""
    offsets: dict[str, int] = {}
    for record in _records(folder / WORK / _JOURNAL):
        match record:
            case {"file": str(name), "offset": int(offset)}:
                offsets[name] = offset
    total, place = _facts(folder / WORK / _BEGUN)
    return Progress(
        written=sum(offsets.values()), total=total, files=len(offsets), working=is_locked(folder / WORK / _LOCK),
        place=place,
    )  # fmt: skip


def _records(journal: Path) -> Iterator[object]:
    try:
        lines = journal.read_bytes().splitlines()
    except OSError:  # nothing was recorded yet
        return
    for line in lines:
        if (record := _parsed(line)) is None:  # the torn end: a resumed conversion cuts it
            return
        yield record


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _facts(begun: Path) -> tuple[int | None, str | None]:
    """Bytes of the whole release, and the place that its files go to."""
    try:
        match json.loads(begun.read_bytes()):
            case {"facts": {"bytes": str(text), **more}} if text.isdecimal():
                place = more.get("place")
                return int(text), place if isinstance(place, str) else None
    except (OSError, ValueError):
        pass
    return None, None


def is_locked(path: Path) -> bool | None:
    """Whether a process holds a lock on the file, by the kernel's list: to try the lock would be in its way."""
    try:
        held, number = _LOCKS.read_text(), path.stat().st_ino
    except OSError:
        return None
    return any(line.split()[5].endswith(f":{number}") for line in held.splitlines() if len(line.split()) > 5)
