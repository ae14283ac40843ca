"""Whole-file writes: a path is either absent, or holds everything that was meant for it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from flagrelease.errors import CheckpointError, ResourceError

_BLOCK_BYTES = 4 << 20


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """Turn what the system refuses (no space, no rights, a broken disk) into a ResourceError that names the file."""
    try:
        yield
    except OSError as error:
        raise ResourceError(f"{error.filename or path}: cannot be written ({error.strerror})") from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file so that `path` is either absent or whole: temporary name, fsync, rename.

    Raises:
        ResourceError: the file cannot be written.
    """
    with refused(path), _replacing(path) as file:
        file.write(data)


def copy_whole(source: Path, path: Path) -> tuple[int, str]:
    """Copy a file in blocks, so that `path` is absent or whole as with `write_whole`; return its size and SHA-256.

    Raises:
        CheckpointError: `source` cannot be read.
        ResourceError: the copy cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    with _readable(source):
        read = source.open("rb")
    with read, refused(path), _replacing(path) as file:
        while True:
            with _readable(source):
                block = read.read(_BLOCK_BYTES)
            if not block:
                break
            digest.update(block)
            size += len(block)
            file.write(block)
    return size, digest.hexdigest()


@contextmanager
def _readable(source: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read ({error.strerror})") from error


def partial_name(name: str) -> str:
    """The temporary name under which a whole-file write of `name` grows; a kill can leave it behind."""
    return f".{name}.partial"


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    temporary = path.with_name(partial_name(path.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:  # a full disk gets its space back
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put new, renamed and removed names in `folder` on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
