"""Publishing into a folder: for trying, and for mirrors. The folder is whole or it is not there."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from flagrelease.console import Tracker
from flagrelease.errors import ResourceError, VerificationError
from flagrelease.publish.hubs.names import SIGNATURE_NAME, STATEMENT_NAME
from flagrelease.publish.listing import compare
from flagrelease.publish.publication import Publication, PublishedFile
from flagrelease.publish.reading.remote import RemoteFile
from flagrelease.publish.signature import check_signed
from flagrelease.records.manifest import MANIFEST_NAME, read_manifest
from flagrelease.records.provenance import read_statement

_CHUNK = 8 << 20


def publish_folder(publication: Publication, folder: Path, progress: Tracker, *, replace: bool = False) -> None:
    """Write the publication to `folder`, through a folder beside it that gets the name when all is there and checked.

    Files of the release are hard links where the file system allows, so they take no space and are not written to;
    every byte is read once and compared with its digest. A folder that holds the same already is left as it is. With
    `replace`, one that holds an earlier publication of the same model for the same chip is removed when this one is
    whole beside it.

    Raises:
        ResourceError: the folder exists and holds something else, cannot be written, or has no space for the files.
        VerificationError: a file of the release is not what the manifest says.
    """
    whole = folder.absolute()
    former = whole.with_name(f".{whole.name}.replaced")
    if os.path.lexists(folder):
        if not folder.is_dir():
            raise ResourceError(f"{folder}: exists and is no folder; name another one")
        difference = compare(publication.by_path, list_folder(folder, progress))
        if not difference:
            if replace:
                shutil.rmtree(former, ignore_errors=True)  # of a run that was killed before it had removed it
            return
        if not replace:
            raise ResourceError(f"{folder}: exists and holds something else ({difference}); name another folder")
        _refuse_another(publication, folder)
    unfinished = whole.with_name(f".{whole.name}.{publication.digest[:12]}.unfinished")
    try:
        _write(publication, folder, unfinished, progress)
        shutil.rmtree(former, ignore_errors=True)  # of a run that was killed between the two names
        if whole.exists():
            whole.rename(former)
        unfinished.rename(whole)
        _sync(whole.parent)
        shutil.rmtree(former, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        where = "" if error.filename is None else f" at {error.filename}"
        raise ResourceError(f"{folder}: cannot be written ({error.strerror or error}{where})") from error


def _refuse_another(publication: Publication, folder: Path) -> None:
    """What is replaced must be an earlier publication of this model for this chip, by the records that lie there.

    Raises:
        ResourceError: it is something else.
    """
    records = publication.records
    try:
        manifest = read_manifest(folder)
        sha256 = hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest()
        there = read_statement((folder / STATEMENT_NAME).read_bytes(), manifest, sha256)
    except (OSError, VerificationError) as error:
        raise ResourceError(
            f"{folder}: holds nothing that flagrelease published ({error}); name another folder"
        ) from None
    if (there.recipe.model, there.chip) != (records.recipe.model, records.chip.id):
        raise ResourceError(f"{folder}: holds {there.recipe.model} for {there.chip}; name another folder")


def _write(publication: Publication, folder: Path, unfinished: Path, progress: Tracker) -> None:
    """Every file below `unfinished`, on the disk and compared."""
    if unfinished.exists():  # of a run that was killed; making it again is cheap, believing it is not
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    needed = _needed_bytes(publication, unfinished)
    if needed > (free := shutil.disk_usage(unfinished).free):
        unfinished.rmdir()
        raise ResourceError(f"{folder}: the publication takes {needed:,} bytes there, {free:,} are free")
    for file in publication.files:
        _place(file, unfinished / file.path)
    difference = compare(publication.by_path, list_folder(unfinished, progress))
    if difference:
        shutil.rmtree(unfinished)
        raise VerificationError(f"{publication.records.release}: not what the manifest says ({difference})")
    for path in [path for path in unfinished.rglob("*") if path.is_dir()]:
        _sync(path)
    _sync(unfinished)


def _needed_bytes(publication: Publication, folder: Path) -> int:
    """What the files take in `folder`: all of them, unless those of the release can be linked there."""
    documents = sum(file.size for file in publication.files if isinstance(file.origin, bytes))
    probe = folder / MANIFEST_NAME
    try:
        probe.hardlink_to(publication.records.release / MANIFEST_NAME)
    except OSError:  # another file system, or one without links
        return publication.bytes
    probe.unlink()
    return documents


def list_folder(folder: Path, progress: Tracker) -> Iterator[RemoteFile]:
    """Every file below `folder`, hashed. A link counts as a file of another content, whatever it leads to."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            yield RemoteFile(path.relative_to(folder).as_posix(), -1, None)
        elif path.is_file():
            digest = hashlib.sha256()
            with path.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    progress.add(len(chunk))
            yield RemoteFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest.hexdigest())


def signature_problems(folder: Path, key: bytes) -> list[str]:
    """What keeps the records of a published folder from being what the key signed, as sentences.

    That the files are those of the records is for `verify_release` to say.

    Raises:
        VerificationError: no manifest, no statement, or one that does not fit the other.
    """
    manifest = read_manifest(folder)
    sha256 = hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest()
    statement, signature = folder / STATEMENT_NAME, folder / SIGNATURE_NAME
    if not statement.is_file():
        raise VerificationError(f"{folder}: no {STATEMENT_NAME}: not a published folder, so nobody signed it")
    digests = read_statement(statement.read_bytes(), manifest, sha256).digests
    return check_signed(signature.read_bytes() if signature.is_file() else None, key, digests)


def _place(file: PublishedFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(file.origin, bytes):
        path.write_bytes(file.origin)
        path.chmod(0o644)  # scripts too: no hub keeps the bit, so cards run them by bash
    else:
        try:
            path.hardlink_to(file.origin)
        except OSError:  # another file system, or one without links
            shutil.copyfile(file.origin, path)
    _sync(path)


def _sync(path: Path) -> None:
    """To the disk: a file's bytes, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
