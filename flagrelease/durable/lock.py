"""Locks between processes: a file that one process holds until it closes it or dies."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from flagrelease.durable.files import refused
from flagrelease.errors import ResourceError

_LONGEST_NOTE = 200


class InUseError(ResourceError):
    """Another process holds a lock."""


def open_locked(path: Path, what: Path | None = None) -> int:
    """Open `path` for reading and writing, making it if need be, and lock it against every other process.

    The kernel drops the lock when the descriptor is closed, also by a kill; a file that is left behind locks
    nobody out.

    Args:
        path: the file to lock; its folder exists. Only its owner can read it.
        what: what a refusal names; the file itself if None.

    Returns:
        The descriptor. Closing it gives the lock back.

    Raises:
        InUseError: another process holds the lock.
        ResourceError: the file cannot be opened or locked.
    """
    while True:
        with refused(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with refused(path):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise InUseError(f"{what or path}: in use by another flagrelease process") from None
                if _is_still(path, descriptor):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder removed it between our opening and our lock


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether `path` still names the opened file."""
    opened = os.fstat(descriptor)
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    return (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino)


class FileLock:
    """A lock file that says who holds it: `process 4711 on node-3`."""

    def __init__(self, path: Path, what: Path) -> None:
        """Take the lock. `what` is what a refusal names, usually the folder that the file guards.

        Raises:
            ResourceError: another process holds it (the message says which), or the file cannot be written.
        """
        try:
            descriptor = open_locked(path, what)
        except InUseError as error:
            holder = _note(path)
            raise InUseError(f"{error} ({holder})" if holder else str(error)) from None
        self._descriptor: int | None = descriptor
        try:
            with refused(path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the lock back; the file stays. Calling it again does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FileLock:
        """Use as a context."""
        return self

    def __exit__(self, *error: object) -> None:
        """See `close`."""
        self.close()


def _note(path: Path) -> str:
    """What the holder of a lock file wrote into it."""
    try:
        return path.read_bytes()[:_LONGEST_NOTE].decode("utf-8", "replace").strip()
    except OSError:
        return ""
