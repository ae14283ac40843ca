"""`Journal`: how far a release has come, so that the same command goes on after a kill at any moment.

An append-only file of JSON lines in the release's work folder. Its first line binds it to one plan and one state of the
source; a tensor's line holds its digests, a file's line says that its first bytes are on the disk and what they hash
to. A line cut off by a crash is ignored; everything it would have said is then done again.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagrelease.convert.plan import Plan, ReleasePlan
from flagrelease.convert.target import Action
from flagrelease.durable.files import sync_folder
from flagrelease.errors import ResourceError
from flagrelease.records.manifest import MANIFEST_NAME, ElementCounts, read_manifest

WORK_FOLDER = ".flagrelease"
WEIGHT, SCALE = "weight", "scale"
_NAME = "journal.jsonl"


@dataclass(frozen=True, slots=True)
class TensorResult:
    """What was learned of one source tensor under one action.

    `source` maps the stored names read (weight, scale) to BLAKE3 digests; `parts` does so for what the action makes, by
    WEIGHT and SCALE, since releases may name a scale differently.
    """

    tensor: str
    action: Action
    source: dict[str, str]
    parts: dict[str, str]
    counts: ElementCounts


@dataclass(frozen=True, slots=True)
class FileState:
    """The first `offset` bytes of a file are on the disk and hash to `sha256`."""

    offset: int
    sha256: str


class Journal:
    """The journal of one release folder, locked against a second process until `close`."""

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        """Open or begin the journal in `folder`; `open_journal` has the checks."""
        self.work = folder / WORK_FOLDER
        self.work.mkdir(parents=True, exist_ok=True)
        self.files: dict[str, FileState] = {}
        self.tensors: dict[tuple[str, Action], TensorResult] = {}
        self._mutex = threading.Lock()
        self._fd = os.open(self.work / _NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read(header, folder)
        except BlockingIOError:
            os.close(self._fd)
            raise ResourceError(f"{folder}: another flagrelease process is writing here") from None
        except BaseException:
            os.close(self._fd)
            raise

    def _read(self, header: dict[str, Any], folder: Path) -> None:
        content = (self.work / _NAME).read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if not lines:
            os.ftruncate(self._fd, 0)
            self._append(header, sync=True)
            sync_folder(self.work)
            sync_folder(folder)
            return
        os.ftruncate(self._fd, len(whole))
        begun = json.loads(lines[0])
        differs = [key for key in header if begun.get(key) != header[key]]
        if differs:
            raise ResourceError(
                f"{folder}: begun under another {' and '.join(differs)}; finish it with the command that began it, or "
                f"remove the folder"
            )
        for line in lines[1:]:
            self._recall(json.loads(line))

    def _recall(self, record: dict[str, Any]) -> None:
        if "file" in record:
            self.files[record["file"]] = FileState(record["offset"], record["sha256"])
            return
        action = Action[record["action"]]
        counts = ElementCounts(**record["counts"])
        result = TensorResult(record["tensor"], action, record["source"], record["parts"], counts)
        self.tensors[result.tensor, action] = result

    def add_tensor(self, result: TensorResult) -> None:
        """Record a tensor. One that has no record when the work goes on is read again, though no file may want it."""
        with self._mutex:
            self.tensors[result.tensor, result.action] = result
        self._append(
            {
                "tensor": result.tensor,
                "action": result.action.name,
                "source": result.source,
                "parts": result.parts,
                "counts": result.counts.model_dump(exclude_defaults=True),
            },
            sync=False,
        )

    def add_file(self, name: str, offset: int, sha256: str) -> None:
        """Record that a file's first bytes are safe. All records before this one are safe then, too."""
        with self._mutex:
            self.files[name] = FileState(offset, sha256)
        self._append({"file": name, "offset": offset, "sha256": sha256}, sync=True)

    def _append(self, record: dict[str, Any], sync: bool) -> None:
        os.write(self._fd, json.dumps(record, separators=(",", ":")).encode() + b"\n")
        if sync:
            os.fsync(self._fd)

    def close(self) -> None:
        """Let another process have the folder."""
        os.close(self._fd)

    def remove(self) -> None:
        """The release is whole: remove the work folder."""
        _remove(self.work)


def open_journal(folder: Path, plan: Plan, release: ReleasePlan) -> Journal | None:
    """The journal of this release in `folder`, or None if the release is already complete there.

    Of a complete one the work folder is removed, if a kill came between the manifest and that.

    Raises:
        ResourceError: the folder holds something else, was begun under another plan or source, or is in use.
    """
    if (folder / MANIFEST_NAME).is_file():
        manifest = read_manifest(folder)
        if manifest.plan != release.digest:
            raise ResourceError(f"{folder}: holds a release of another plan; give another --out or remove the folder")
        for file in manifest.files:
            path = folder / file.path
            if not path.is_file() or path.stat().st_size != file.size:
                raise ResourceError(f"{path}: the release is complete, but this file is missing or has another size")
        _tidy(folder)
        return None
    if folder.exists() and not folder.is_dir():
        raise ResourceError(f"{folder}: is not a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / WORK_FOLDER / _NAME).is_file():
        raise ResourceError(f"{folder}: is not empty and was not begun by flagrelease; give another --out")
    stamps = {h.file.name: h.file.stat().st_mtime_ns for h in plan.source.index.headers}
    return Journal(folder, {"plan": release.digest, "state of the source": stamps})


def _tidy(folder: Path) -> None:
    """Remove the work folder of a complete release, if there is one and nobody is at it."""
    work = folder / WORK_FOLDER
    if not work.is_dir():
        return
    if not (work / _NAME).is_file():
        work.rmdir()
        return
    fd = os.open(work / _NAME, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(work)
    except BlockingIOError:
        raise ResourceError(f"{folder}: another flagrelease process is writing here") from None
    finally:
        os.close(fd)


def _remove(work: Path) -> None:
    """The journal goes last: while it is there, the work can go on."""
    for path in work.iterdir():
        if path.name != _NAME:
            path.unlink()
    (work / _NAME).unlink()
    work.rmdir()
