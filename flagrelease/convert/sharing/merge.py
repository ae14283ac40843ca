"""`merge_parts`: from finished parts to complete releases. Files are renamed, not copied; the manifest comes last."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.running.assembly import assemble
from flagrelease.convert.running.earlier import PARTS_FOLDER
from flagrelease.convert.running.journal import WORK_FOLDER, open_journal, ours
from flagrelease.convert.sharing.part_folder import (
    DONE_NAME,
    DRIVER_LOCK_NAME,
    DRIVER_NAME,
    PROGRESS_NAME,
    counts_in,
    folder_of,
    require_count,
)
from flagrelease.convert.sharing.records import PartRecords, join_checked, join_tensors, places, read_parts
from flagrelease.convert.sharing.shares import Share, divide
from flagrelease.durable.files import refused
from flagrelease.durable.folder import LOCK_NAME, remove_control
from flagrelease.durable.lock import FileLock
from flagrelease.errors import ResourceError
from flagrelease.records.manifest import MANIFEST_NAME, Manifest, read_manifest

_BLOCK_BYTES = 4 << 20


def merge_parts(
    plan: Plan,
    out: Path,
    *,
    workers: int,
    progress: Callable[[int], None],
    just_written: Collection[int] = (),
) -> dict[str, Manifest]:
    """Make the releases of `plan` of their parts under `out`; go on with a merge that was killed.

    Every file is read and compared with its part's record, because it may have been copied from another machine.

    Args:
        plan: what the parts were made for.
        out: holds parts/, and will hold the releases.
        workers: threads that read files.
        progress: called with the bytes of files that are known to be right.
        just_written: numbers of parts whose files need not be read, because they were written or read a moment ago.

    Returns:
        The manifest of each release by folder name.

    Raises:
        ResourceError: no parts; parts or files that are missing, unfinished, in use or of something else; a file
            that is not what its part wrote.
        CheckpointError: parts were made of different bytes.
    """
    waiting = []
    for number, release in enumerate(plan.releases):
        folder = out / release.target.folder
        if (folder / MANIFEST_NAME).is_file():
            open_journal(folder, plan, release)  # checks it, and removes what a kill behind the manifest left
        else:
            waiting.append(number)
    counts = sorted(counts_in(out))
    if not counts and waiting:
        raise ResourceError(f"{out}: holds no parts; make them with --part 1/N to N/N, or convert without --merge")
    if counts:
        require_count(out, counts[0])
        shares = divide(plan, counts[0])
        if waiting:
            with ExitStack() as locks:
                _merge(
                    plan, out, read_parts(plan, out, shares, waiting, locks), waiting, workers, progress, just_written
                )
        _remove_parts(plan, out, shares)
    progress(plan.bytes_to_write)
    return {r.target.folder: read_manifest(out / r.target.folder) for r in plan.releases}


def _merge(
    plan: Plan,
    out: Path,
    parts: Sequence[PartRecords],
    waiting: Sequence[int],
    workers: int,
    progress: Callable[[int], None],
    just_written: Collection[int],
) -> None:
    tensors = {number: join_tensors(plan, parts, number) for number in waiting}
    checked = join_checked(parts)
    _compare_files(plan, out, parts, waiting, workers, progress, just_written)
    for number in waiting:
        release = plan.releases[number]
        folder = out / release.target.folder
        journal = open_journal(folder, plan, release)
        assert journal is not None, "another merge of the same parts would hold their locks"
        try:
            if journal.files:
                raise ResourceError(
                    f"{folder}: a conversion without --part was begun here; finish it, or remove the folder"
                )
            for part in parts:
                for file in (plan.files[n] for n in part.share.files if plan.files[n].release == number):
                    journal.files[file.name] = part.files[number, file.name]
                    made, grown, _ = places(plan, out, part.share, file)
                    if made.is_file():
                        with refused(grown):
                            made.replace(grown)
            journal.tensors |= tensors[number]
            assemble(plan, release, folder, journal, checked)
        finally:
            journal.close()


def _compare_files(
    plan: Plan,
    out: Path,
    parts: Sequence[PartRecords],
    waiting: Sequence[int],
    workers: int,
    progress: Callable[[int], None],
    just_written: Collection[int],
) -> None:
    """Read the files of all parts but those of `just_written`, and compare their SHA-256."""
    todo = []
    right = sum(release.size for number, release in enumerate(plan.releases) if number not in waiting)
    for part in parts:
        for file in (plan.files[number] for number in part.share.files):
            if file.release not in waiting:
                continue
            if part.share.number in just_written:
                right += file.size
            else:
                path = next(path for path in places(plan, out, part.share, file) if path.is_file())
                todo.append((part.share, path, part.files[file.release, file.name].sha256))
    stop, lock = threading.Event(), threading.Lock()

    def read(count: int) -> None:
        nonlocal right
        with lock:
            right += count
            progress(right)

    def compare(share: Share, path: Path, sha256: str) -> None:
        if (found := _sha256(path, read, stop)) is not None and found != sha256:
            raise ResourceError(
                f"{path}: its SHA-256 is {found}, part {share} wrote {sha256}: damaged since, or copied badly; copy it "
                f"again, or remove {folder_of(out, share)} and run part {share} again"
            )

    with ThreadPoolExecutor(workers) as pool:
        try:
            for done in [pool.submit(compare, *one) for one in todo]:
                done.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _sha256(path: Path, read: Callable[[int], None], stop: threading.Event) -> str | None:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
    with refused(path), path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            if stop.is_set():
                return None
            digest.update(buffer[:count])
            read(count)
    return digest.hexdigest()


def _remove_parts(plan: Plan, out: Path, shares: Sequence[Share]) -> None:
    """All releases are complete: remove what is left of their parts."""
    for share in shares:
        folder = folder_of(out, share)
        for release in plan.releases:
            own = folder / release.target.folder
            control = own / WORK_FOLDER
            if control.is_dir():
                lock = FileLock(control / LOCK_NAME, folder)
                try:
                    remove_control(control, lock, ours(release))
                finally:
                    lock.close()
            with suppress(OSError):  # absent, or a user put something there
                own.rmdir()
        for name in (DONE_NAME, PROGRESS_NAME):
            with refused(folder):
                (folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()
    parts = out / PARTS_FOLDER
    for name in (DRIVER_NAME, DRIVER_LOCK_NAME):
        with refused(parts):
            (parts / name).unlink(missing_ok=True)
    with suppress(OSError):
        parts.rmdir()
