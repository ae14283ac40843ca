"""What finished parts recorded: read, checked for completeness, and joined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from flagrelease.convert.planning.files import OutputFile
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.planning.target import Action
from flagrelease.convert.running.journal import JOURNAL_NAME, WORK_FOLDER, FileState, TensorResult, read_journal
from flagrelease.convert.sharing.part_folder import Done, done_record, folder_of, read_done, require_same
from flagrelease.convert.sharing.shares import Share
from flagrelease.durable.folder import LOCK_NAME
from flagrelease.durable.lock import FileLock
from flagrelease.errors import CheckpointError, ResourceError
from flagrelease.records.manifest import CheckedFileRecord

_SHOWN = 10  # problems in a message
Tensors = dict[tuple[str, Action], TensorResult]


@dataclass(slots=True)
class PartRecords:
    """What one part recorded, its folders locked.

    Attributes:
        files: by (index of the release, name).
        tensors: by the index of the release.
    """

    share: Share
    done: Done
    files: dict[tuple[int, str], FileState] = field(default_factory=dict)
    tensors: dict[int, Tensors] = field(default_factory=dict)


def read_parts(
    plan: Plan, out: Path, shares: Iterable[Share], releases: Iterable[int], locks: ExitStack
) -> list[PartRecords]:
    """The records of all parts of the plan's releases `releases`.

    Args:
        locks: holds the lock of every part when this returns.

    Raises:
        ResourceError: parts or files that are missing or not finished, all of them named; a part of another plan,
            checkpoint or version; a part that is in use.
    """
    wanted, found, problems = list(releases), [], []
    for share in shares:
        folder = folder_of(out, share)
        if not folder.is_dir():
            problems.append(f"part {share} is missing")
            continue
        for number in wanted:
            if (control := _control(plan, folder, number)).is_dir():
                locks.callback(FileLock(control / LOCK_NAME, folder).close)
        done = read_done(folder)
        if done is None:
            problems.append(f"part {share} is not finished")
            continue
        require_same(done, done_record(plan, share, ()), folder)
        records = PartRecords(share, done)
        for number in wanted:
            log = _control(plan, folder, number) / JOURNAL_NAME
            files, records.tensors[number] = read_journal(log) if log.is_file() else ({}, {})
            records.files |= {(number, name): state for name, state in files.items()}
        problems += _unfinished(plan, out, records, wanted)
        found.append(records)
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ResourceError(f"{out}: cannot be merged: {'; '.join(problems[:_SHOWN])}{more}")
    return found


def _control(plan: Plan, folder: Path, release: int) -> Path:
    return folder / plan.releases[release].target.folder / WORK_FOLDER


def _unfinished(plan: Plan, out: Path, records: PartRecords, releases: list[int]) -> Iterator[str]:
    share = records.share
    for file in (plan.files[number] for number in share.files):
        if file.release not in releases:
            continue
        where = f"part {share}: {plan.releases[file.release].target.folder}/{file.name}"
        state = records.files.get((file.release, file.name))
        if state is None or state.offset != file.size:
            yield f"{where} has no record of being finished"
        elif not any(path.is_file() and path.stat().st_size == file.size for path in places(plan, out, share, file)):
            yield f"{where} is missing or has another size"


def places(plan: Plan, out: Path, share: Share, file: OutputFile) -> tuple[Path, Path, Path]:
    """Where a finished file may lie: in its part, and where a merge that was killed moved it to."""
    folder = plan.releases[file.release].target.folder
    return (
        folder_of(out, share) / folder / WORK_FOLDER / file.name,
        out / folder / WORK_FOLDER / file.name,
        out / folder / file.name,
    )


def join_tensors(plan: Plan, parts: Iterable[PartRecords], release: int) -> Tensors:
    """The records of all tensors of a release.

    Raises:
        CheckpointError: two parts read different bytes of one tensor.
        ResourceError: a tensor has no record.
    """
    joined: Tensors = {}
    by: dict[tuple[str, Action], Share] = {}
    for part in parts:
        for key, result in part.tensors[release].items():
            if (other := joined.setdefault(key, result)) != result:
                raise CheckpointError(
                    f"tensor {key[0]!r}: parts {by[key]} and {part.share} read different bytes of it "
                    f"({_read(other)} and {_read(result)}): the copies of the checkpoint on their machines differ"
                )
            by.setdefault(key, part.share)
    planned = plan.releases[release]
    for tensor, action, _ in planned.parts.values():
        if (tensor.spec.name, action) not in joined:
            raise ResourceError(f"{planned.target.folder}: no part has a record of tensor {tensor.spec.name!r}")
    return joined


def _read(result: TensorResult) -> str:
    return " ".join(digest[:16] for digest in result.source.values())


def join_checked(parts: Iterable[PartRecords]) -> tuple[CheckedFileRecord, ...]:
    """What the parts compared with stated digests, each file and algorithm once.

    Raises:
        CheckpointError: two parts found different digests of one file.
    """
    joined: dict[tuple[str, str], CheckedFileRecord] = {}
    for part in parts:
        for record in part.done.checked:
            key = record.path, record.algorithm
            other = joined.setdefault(key, record)
            if other.digest != record.digest:
                raise CheckpointError(
                    f"{record.path}: its {record.algorithm} was {other.digest} for one part and {record.digest} for "
                    f"part {part.share}: the copies of the checkpoint on their machines differ"
                )
            authorities = tuple(sorted({*other.stated_by, *record.stated_by}))
            joined[key] = other.model_copy(update={"stated_by": authorities})
    return tuple(joined[key] for key in sorted(joined))
