"""The check `files`: the folder holds exactly the files of its manifest, with their sizes and SHA-256.

It proves that the release is what the converter wrote, not that the converter was right. A published folder holds more
(card, report, run files); there the list of its provenance statement is checked too, and nothing else may be there.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flagrelease.errors import VerificationError
from flagrelease.publish.hubs.names import CARD_NAME, SIGNATURE_NAME, STATEMENT_NAME
from flagrelease.records.manifest import MANIFEST_NAME, FileRecord, Manifest
from flagrelease.records.provenance import read_statement
from flagrelease.verify.result import Check, CheckLog, Finding
from flagrelease.verify.workers import Workers

_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
_EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
_BLOCK = 4 << 20


def check_files(release: Path, manifest: Manifest, workers: Workers) -> Check:
    """Compare folder and manifest: names, kinds, modes, sizes, then the SHA-256 of every file."""
    with checking_files(release, manifest, workers) as finish:
        return finish()


@contextmanager
def checking_files(release: Path, manifest: Manifest, workers: Workers) -> Iterator[Callable[[], Check]]:
    """`check_files`, which hashes while the body runs; what is yielded waits for the end.

    A file is hashed from its first byte to its last by one core, so the largest begin first, and others read weights.
    """
    log = CheckLog("files")
    found = {path.relative_to(release).as_posix(): path for path in _entries(release)}
    records = {record.path: record for record in manifest.files}
    listed, unlisted = "manifest", {MANIFEST_NAME}
    if STATEMENT_NAME in found and STATEMENT_NAME not in records:
        found = {name: path for name, path in found.items() if not _is_left_by_downloads(name)}
        records = _published_records(release, manifest, records, log)
        listed, unlisted = "manifest and provenance statement", {MANIFEST_NAME, STATEMENT_NAME, SIGNATURE_NAME}
    for name in sorted(found.keys() - records.keys() - unlisted):
        log.add(Finding(file=name, rule=f"not in the {listed}"))
    for name in sorted(records.keys() - found.keys()):
        log.add(Finding(file=name, rule=f"in the {listed}, but not in the folder"))
    modes = _keeps_modes(release)
    for name, path in sorted(found.items()):
        _check_kind(name, path, release, modes, log)

    def hash_one(record: FileRecord) -> None:
        _check_content(found[record.path], record, workers, log)

    there = [record for name, record in sorted(records.items()) if name in found]
    with workers.begun(hash_one, sorted(there, key=lambda record: -record.size)) as finish:

        def close() -> Check:
            finish()
            return log.close(f"names, sizes and SHA-256 of all files against the {listed}")

        yield close


def _is_left_by_downloads(name: str) -> bool:
    """Beside what was published: the files of a git clone, and the bookkeeping of `hf download`."""
    return name in (".git", ".gitattributes") or name.startswith((".git/", ".cache/huggingface/"))


def _published_records(
    release: Path, manifest: Manifest, records: dict[str, FileRecord], log: CheckLog
) -> dict[str, FileRecord]:
    """The records of a published folder: the card is the publication's, and the statement lists what was added."""
    try:
        sha256 = hashlib.sha256((release / MANIFEST_NAME).read_bytes()).hexdigest()
        digests = read_statement((release / STATEMENT_NAME).read_bytes(), manifest, sha256).digests
    except OSError as error:
        raise VerificationError(f"{error.filename}: cannot be read ({error.strerror})") from error
    except VerificationError as error:
        log.add(Finding(file=STATEMENT_NAME, rule=str(error)))
        return records
    added = digests.keys() - records.keys() - {MANIFEST_NAME, STATEMENT_NAME}
    return records | {
        name: FileRecord(path=name, size=_size(release / name), sha256=digests[name])
        for name in (*added, *({CARD_NAME} & records.keys()))
    }


def _size(path: Path) -> int:
    """Of what is there: the statement lists digests only."""
    return path.stat().st_size if path.is_file() else 0


def _entries(release: Path) -> Iterator[Path]:
    # os.walk does not follow links to folders; such a link is listed as an entry, and refused by its kind
    for parent, folders, files in os.walk(release):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        yield from (Path(parent, name) for name in [*files, *links])


def _keeps_modes(release: Path) -> bool:
    """Whether the file system tells data from programs; a mount without modes shows even the manifest as executable."""
    return not (release / MANIFEST_NAME).stat().st_mode & _EXECUTABLE


def _is_link_to_blob(path: Path, release: Path) -> bool:
    """Whether a file of a hub cache's snapshot is the cache's link to the blob that holds the bytes."""
    blobs = release.absolute().parent.parent / "blobs"
    return release.absolute().parent.name == "snapshots" and path.is_file() and path.resolve().parent == blobs.resolve()


def _check_kind(name: str, path: Path, release: Path, modes: bool, log: CheckLog) -> None:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode) and _is_link_to_blob(path, release):
        mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        log.add(Finding(file=name, rule="not a regular file: a release holds no links, pipes or devices"))
    elif modes and mode & _EXECUTABLE:
        log.add(Finding(file=name, rule=f"executable (mode {stat.S_IMODE(mode):o}): a release is data"))
    if path.suffix in _PICKLES:
        log.add(Finding(file=name, rule="a pickle file can run code when read"))


def _check_content(path: Path, record: FileRecord, workers: Workers, log: CheckLog) -> None:
    if not path.is_file():
        return
    size, sha256 = _sha256(path, workers)
    log.saw(1, size)
    if size != record.size:
        log.add(Finding(file=record.path, rule=f"has {size} bytes, the manifest says {record.size}"))
    elif sha256 != record.sha256:
        log.add(Finding(file=record.path, rule=f"has SHA-256 {sha256}, the manifest says {record.sha256}"))


def _sha256(path: Path, workers: Workers) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(view[:count])
                size += count
                workers.advance(count)
    except OSError as error:
        raise VerificationError(f"{path}: cannot be read ({error.strerror})") from error
    return size, digest.hexdigest()
