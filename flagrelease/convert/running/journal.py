"""`Journal`: how far a release has come, so that the same command resumes after a kill at any moment.

RELEASE/.flagrelease/ is a work folder (durable/folder.py): locked, and bound to one plan and one source. In it
unfinished files grow beside an append log (durable/log.py). A record for each tensor holds its digests, a record for
each file says that its first bytes are on the disk and what they hash to, and a record for each file of the source
that it has the digest that is stated for it. What has no record is done again.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

from flagrelease.convert.planning.parts import Role
from flagrelease.convert.planning.plan import Plan, ReleasePlan
from flagrelease.convert.planning.target import Action
from flagrelease.durable.folder import LOCK_NAME, WorkFolder, refuse_foreign, remove_control
from flagrelease.durable.lock import FileLock
from flagrelease.durable.log import AppendLog
from flagrelease.errors import ResourceError
from flagrelease.records.manifest import MANIFEST_NAME, CheckedFileRecord, ElementCounts, LossRecord, read_manifest

WORK_FOLDER = ".flagrelease"
JOURNAL_NAME, _LOG_VERSION = "journal.jsonl", 2


class TensorResult(BaseModel):
    """What was learned of one source tensor under one action.

    `source` maps the stored names that were read (weight, scale) to BLAKE3 digests. `parts` does so for what the action
    makes, by role, because releases may name a scale differently. `loss` is what scales by row cost.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor: str
    action: Action
    source: dict[str, str]
    parts: dict[Role, str]
    counts: ElementCounts
    loss: LossRecord | None = None


class FileState(BaseModel):
    """The first `offset` bytes of a file are on the disk and hash to `sha256`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    file: str
    offset: int
    sha256: str


JournalRecord = TensorResult | FileState | CheckedFileRecord
_RECORDS: TypeAdapter[JournalRecord] = TypeAdapter(JournalRecord)


class Journal:
    """The journal of one release folder, locked against every other process until `close`."""

    def __init__(self, folder: WorkFolder, ours: Collection[str]) -> None:
        """Read what an earlier run recorded in an opened work folder. `ours`: names of files that may grow in it.

        Raises:
            ResourceError: the work folder holds files of somebody else, or the log cannot be read or written.
        """
        self.work = folder.control
        self._folder, self._ours = folder, ours
        self._mutex = threading.Lock()
        refuse_foreign(self.work, ours)
        self._log = _open_log(self.work / JOURNAL_NAME)
        self.files, self.tensors, self.checked = _split(self._log.records)

    def add_tensor(self, result: TensorResult) -> None:
        """Record a tensor. On resume, a tensor without a record is read again even if its output is already written.

        A tensor that is visited again, for a file that was not made with the others, has its record already."""
        with self._mutex:
            if self.tensors.get((result.tensor, result.action)) == result:
                return
            self.tensors[result.tensor, result.action] = result
        self._log.append(result, sync=False)

    def add_file(self, name: str, offset: int, sha256: str) -> None:
        """Record that a file's first bytes are on the disk. All records before this one are then on the disk too."""
        state = FileState(file=name, offset=offset, sha256=sha256)
        with self._mutex:
            self.files[name] = state
        self._log.append(state, sync=True)

    def add_checked(self, record: CheckedFileRecord) -> None:
        """Record that a file of the source has the digest that is stated for it. The work folder is bound to the
        state of the source, so this holds for whoever opens it again."""
        self._log.append(record, sync=False)

    def close(self) -> None:
        """Let another process have the folder."""
        self._log.close()
        self._folder.close()

    def remove(self) -> None:
        """The release is complete: remove the work folder."""
        self._log.close()
        self._folder.remove_control(self._ours)


def read_journal(path: Path) -> tuple[dict[str, FileState], dict[tuple[str, Action], TensorResult]]:
    """The records of files and of tensors in a journal, whose work folder the caller has locked.

    Raises:
        ResourceError: it is no journal of this version, or cannot be read.
    """
    with _open_log(path) as log:
        files, tensors, _ = _split(log.records)
        return files, tensors


def _open_log(path: Path) -> AppendLog[JournalRecord]:
    return AppendLog(path, "conversion", _LOG_VERSION, _RECORDS, {})


def _split(
    records: Iterable[JournalRecord],
) -> tuple[dict[str, FileState], dict[tuple[str, Action], TensorResult], list[CheckedFileRecord]]:
    files: dict[str, FileState] = {}
    tensors: dict[tuple[str, Action], TensorResult] = {}
    checked: list[CheckedFileRecord] = []
    for record in records:
        if isinstance(record, FileState):
            files[record.file] = record
        elif isinstance(record, TensorResult):
            tensors[record.tensor, record.action] = record
        else:
            checked.append(record)
    return files, tensors, checked


def open_journal(
    folder: Path, plan: Plan, release: ReleasePlan, facts: Mapping[str, str] | None = None
) -> Journal | None:
    """The journal of this release in `folder`, or None if the release is already complete there.

    A complete release is known by its manifest, plan and source; its files must be there with their sizes but are not
    read again, which is what `flagrelease verify` does. If a kill came between the manifest and the removal of the work
    folder, the work folder is removed now.

    Raises:
        ResourceError: the folder holds something else, was begun for another checkpoint or plan, or is in use.
    """
    if (folder / MANIFEST_NAME).is_file():
        check_complete(folder, release)
        tidy(folder, release)
        return None
    known = {"bytes": str(release.size)}  # so that `flagrelease status` can say how far it is
    work_folder = WorkFolder(folder, WORK_FOLDER, "convert", binding_of(plan, release), known | dict(facts or {}))
    try:
        return Journal(work_folder, ours(release))
    except BaseException:
        work_folder.close()
        raise


def tidy(folder: Path, release: ReleasePlan) -> None:
    """Remove the work folder that a kill left in a complete release, unless somebody works there or put files there.

    Raises:
        ResourceError: somebody does or did; names the folder or the file.
    """
    work, names = folder / WORK_FOLDER, ours(release)
    if not work.is_dir():
        return
    refuse_foreign(work, names)
    lock = FileLock(work / LOCK_NAME, folder)
    try:
        remove_control(work, lock, names)
    finally:
        lock.close()


def ours(release: ReleasePlan) -> frozenset[str]:
    """The files that may lie in the work folder of `release`, or of a part of it."""
    return frozenset({*(file.name for file in release.files), JOURNAL_NAME})


def binding_of(plan: Plan, release: ReleasePlan) -> dict[str, str]:
    """What every byte of the release depends on, by names for the user."""
    stamps = [(h.file.name, plan.source.files.stamp(h.file.name)) for h in plan.source.index.headers]
    return {
        "checkpoint": plan.source.identity.digest,
        "plan": release.digest_without_source,
        "state of the source": " ".join(f"{name}:{stamp}" for name, stamp in stamps),
    }


def check_complete(folder: Path, release: ReleasePlan) -> None:
    """Refuse a complete release of another plan, or one whose files are not there with their sizes.

    Raises:
        ResourceError: names the folder or the file.
    """
    manifest = read_manifest(folder)
    if manifest.plan != release.digest:
        raise ResourceError(f"{folder}: holds a release of another plan; give another --out or remove the folder")
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            raise ResourceError(f"{path}: the release is complete, but this file is missing or has another size")
