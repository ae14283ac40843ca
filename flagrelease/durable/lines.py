"""`LineFile`: a file that grows by whole lines, whatever interrupts it. What the lines mean is its user's business."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

from flagrelease.durable.files import refused, sync_folder
from flagrelease.durable.lock import open_locked
from flagrelease.errors import ResourceError


class LineFile:
    """A locked file of lines.

    Attributes:
        path: where it is.
        lines: the whole lines that were there at opening, without their ends. Their reader calls `keep`.
    """

    def __init__(self, path: Path, start: bytes) -> None:
        """Open or create the file and lock it; nothing in it is changed yet.

        Args:
            path: the file; folders above it are made.
            start: what every file of this kind starts with. A file without a single whole line is what a kill during
                the first line leaves, but only if it agrees with `start`; otherwise it is somebody else's.

        Raises:
            ResourceError: the file is of another kind, is in use by another process, or cannot be opened.
        """
        self.path = path
        with refused(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = open_locked(path)
        self._closed = False
        self._mutex = threading.Lock()
        try:
            with refused(path):
                sync_folder(path.parent)
                *self.lines, torn = path.read_bytes().split(b"\n")
            torn = torn.rstrip(b"\0")  # some file systems keep the new length and lose the data
            if not self.lines and torn[: len(start)] != start[: len(torn)]:
                raise ResourceError(f"{path}: was not written by this command; give another path or remove the file")
        except BaseException:
            self.close()
            raise
        self._length = sum(len(line) + 1 for line in self.lines)

    def keep(self, count: int) -> None:
        """Cut everything behind the first `count` lines, and a torn end.

        Raises:
            ResourceError: the system refuses.
        """
        self.lines = self.lines[:count]
        self._length = sum(len(line) + 1 for line in self.lines)
        with refused(self.path):
            os.ftruncate(self._descriptor, self._length)

    def append(self, line: bytes, *, sync: bool) -> None:
        """Write one line. Threads may call this at once.

        When this returns, a kill of the process cannot lose the line; with `sync`, neither can a power failure, and
        the same is then true of all lines before it. If it raises, the file ends as before, or with a torn line that
        the next opening cuts.

        Raises:
            ResourceError: no space, or another refusal of the system.
        """
        content = line + b"\n"
        with self._mutex, refused(self.path):
            try:
                self._write(content)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self._length)
                raise
            self._length += len(content)
            if sync:
                os.fsync(self._descriptor)

    def _write(self, content: bytes) -> None:
        """At the known end, not at the file's: what an earlier failure may have left there is overwritten."""
        done = 0
        while done < len(content):
            count = os.pwrite(self._descriptor, content[done:], self._length + done)
            if count == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done += count

    def close(self) -> None:
        """Close the file and give the lock back. Calling it again does nothing."""
        if not self._closed:
            self._closed = True
            os.close(self._descriptor)
