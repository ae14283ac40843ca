"""`SequentialFile`: writes a file front to back past the page cache, hashing it on the way; can resume after a kill.

Releases are far larger than memory. Written through the page cache they push everything else out of it and make the
kernel copy each byte once more; so blocks go to the disk directly (O_DIRECT) where the file system can, and through the
page cache where it cannot. The bytes are the same.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flagrelease.durable.files import refused

# One write. A multiple of every device's logical block; large enough that the number of calls does not matter.
BLOCK_BYTES = 4 << 20
_SECTOR = 4096
_O_DIRECT = getattr(os, "O_DIRECT", 0)

Bytes = NDArray[np.uint8]


class SequentialFile:
    """A file being written. `position` counts the bytes given so far; `sync` makes safe what it returns of them."""

    def __init__(self, path: Path, size: int) -> None:
        """Create `path`, or open it for `resume`. Nothing is truncated yet."""
        self.path = path
        self.size = size
        self.position = 0
        self._flushed = 0
        self._sha256 = hashlib.sha256()
        self._block = np.frombuffer(mmap.mmap(-1, BLOCK_BYTES), dtype=np.uint8)  # page-aligned, as O_DIRECT wants
        self._fd = _open(path)

    def resume(self, offset: int, sha256: str) -> bool:
        """Go on behind the first `offset` bytes if they still hash to `sha256`; otherwise stay at 0 and say so."""
        digest = hashlib.sha256()
        with self.path.open("rb", buffering=0) as file:
            remaining = offset
            while remaining:
                count = file.readinto(memoryview(self._block)[: min(remaining, BLOCK_BYTES)])
                if not count:
                    return False
                digest.update(self._block[:count])
                remaining -= count
        if digest.hexdigest() != sha256:
            return False
        self._sha256, self.position, self._flushed = digest, offset, offset
        return True

    def append(self, data: Bytes) -> None:
        """Write `data` (contiguous) behind what is there."""
        while len(data):
            start = self.position - self._flushed
            count = min(len(data), BLOCK_BYTES - start)
            np.copyto(self._block[start : start + count], data[:count])
            self.position += count
            data = data[count:]
            if start + count == BLOCK_BYTES:
                self._flush(BLOCK_BYTES)

    def sync(self) -> tuple[int, str]:
        """Make all full blocks safe; return their length and SHA-256."""
        with refused(self.path):
            os.fdatasync(self._fd)
        return self._flushed, self._sha256.hexdigest()

    def finish(self) -> str:
        """Write what is left, make the file safe, and return its SHA-256."""
        if self.position != self.size:
            raise AssertionError(f"{self.path}: {self.position} bytes given, {self.size} planned")
        rest = self.position - self._flushed
        if rest:
            self._flush(rest)
        with refused(self.path):
            os.ftruncate(self._fd, self.size)
            os.fsync(self._fd)
        return self._sha256.hexdigest()

    def _flush(self, count: int) -> None:
        self._sha256.update(self._block[:count])
        padded = -(-count // _SECTOR) * _SECTOR  # the last block: `finish` cuts the file to its size
        self._block[count:padded] = 0
        done = 0
        while done < padded:
            done += self._write(memoryview(self._block)[done:padded], self._flushed + done)
        self._flushed += count

    def _write(self, data: memoryview, offset: int) -> int:
        with refused(self.path):
            try:
                return os.pwrite(self._fd, data, offset)
            except OSError as error:
                if error.errno != errno.EINVAL or not fcntl.fcntl(self._fd, fcntl.F_GETFL) & _O_DIRECT:
                    raise
            # Some file systems take O_DIRECT at open and refuse it here.
            fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~_O_DIRECT)
            return os.pwrite(self._fd, data, offset)

    def __enter__(self) -> SequentialFile:
        """Use as a context: the descriptor is closed at the end, whatever happened."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `close`."""
        self.close()

    def close(self) -> None:
        """Close the descriptor; what was not flushed is forgotten."""
        os.close(self._fd)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags | _O_DIRECT, 0o666)
    except OSError:
        pass  # this file system has no direct writes (EINVAL), or there is another problem, which comes again below
    with refused(path):
        return os.open(path, flags, 0o666)
