"""Whole-file writes: a path is either absent, or holds everything that was meant for it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from flagrelease.errors import CheckpointError, ResourceError

_BLOCK_BYTES = 4 << 20


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """No space, quota, rights, a broken disk: a ResourceError that names the file that the system could not write."""
    try:
        yield
    except OSError as error:
        raise ResourceError(f"{error.filename or path}: cannot be written ({error.strerror})") from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file so that `path` is either absent or whole: temporary name, fsync, rename.

    Raises:
        ResourceError: it cannot be written.
    """
    with refused(path), _replacing(path) as file:
        file.write(data)


def copy_whole(source: Path, path: Path) -> tuple[int, str]:
    """Copy a file like `write_whole`, in blocks; return its size and SHA-256.

    Raises:
        CheckpointError: `source` cannot be opened.
        ResourceError: the copy cannot be written.
    """
    digest = hashlib.sha256()
    try:
        read = source.open("rb")
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read ({error.strerror})") from error
    with read, refused(path), _replacing(path) as file:
        while block := read.read(_BLOCK_BYTES):
            digest.update(block)
            file.write(block)
        size = file.tell()
    return size, digest.hexdigest()


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    temporary = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` safe."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
