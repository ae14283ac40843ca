"""`OUT/records`: small records by which a second run sees that nothing changed since the first.

A stage leaves one where what it leaves otherwise does not tell: when the files of a release were proved, what a
baseline was recorded for, which files were published where. Without a record the stage looks again; that is all.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from flagrelease.durable.files import write_whole

RECORDS = "records"
Stamps = dict[str, tuple[int, int]]  # path -> size, and when it was written (ns)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Proved(_Strict):
    """`verify-RELEASE.json`: the files of a release as they were when they were proved, or found wrong."""

    manifest_sha256: str
    files: Stamps


class RecordedFor(_Strict):
    """`baseline.json`: what each part of `OUT/baseline` was recorded for, by the part's name."""

    parts: dict[str, dict[str, Any]]


class Published(_Strict):
    """`publish-HUB-RELEASE-CHIP.json`, HUB being `hf`, `modelscope` or `folder`: what was published, and where.

    Attributes:
        place: `hf:OWNER/NAME`, `modelscope:OWNER/NAME` or a folder.
        version: the tag.
        digests: path -> SHA-256 of all files.
        files: of a folder, as they were when they were compared.
    """

    place: str
    private: bool
    version: str
    digests: dict[str, str]
    files: Stamps = {}


Record = TypeVar("Record", Proved, RecordedFor, Published)


def read_record(kind: type[Record], out: Path, name: str) -> Record | None:
    """A record; None if there is none, or one that another version wrote: then the stage looks again."""
    path = out / RECORDS / f"{name}.json"
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_record(record: Record, out: Path, name: str) -> None:
    """Write a record, whole or not at all.

    Raises:
        ResourceError: the system refuses.
    """
    write_whole(out / RECORDS / f"{name}.json", record.model_dump_json(indent=1).encode() + b"\n")


def stamps_of(folder: Path, paths: Iterable[str]) -> Stamps:
    """Sizes and times of files; one that is not there has size -1."""
    found: Stamps = {}
    for path in sorted(paths):
        try:
            status = (folder / path).lstat()
        except FileNotFoundError:  # noqa: PERF203 - a few hundred files
            found[path] = (-1, 0)
        else:
            found[path] = (status.st_size, status.st_mtime_ns)
    return found


def differing(was: Stamps, now: Stamps) -> list[str]:
    """Files that were written, or that came or went, between two looks."""
    return sorted(path for path in was.keys() | now.keys() if was.get(path) != now.get(path))
