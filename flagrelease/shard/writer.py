"""`SequentialFile`: writes a file front to back past the page cache, hashing it beside; can resume after a kill.

Releases are far larger than memory. Written through the page cache they push everything else out of it and make the
kernel copy each byte once more; so blocks go to the disk directly (O_DIRECT) where the file system can, and through the
page cache where it cannot. The bytes are the same.

Direct writes want memory, offset and length in whole sectors. Data whose address fits their offset (`sector_offset`)
are written from where they are; others are gathered in a block first, which is one more copy. A thread of the file
hashes what is being written.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flagrelease.durable.files import refused

# One write. A multiple of every device's logical block; large enough that the number of calls does not matter.
BLOCK_BYTES = 4 << 20
SECTOR = 4096
# Fewer bytes than this are gathered: a write and a hand-over to another thread cost more than their copy.
_STRAIGHT_BYTES = 256 << 10
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
        self._beside = ThreadPoolExecutor(1, thread_name_prefix=f"SHA-256 of {path.name}")

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
        """Write `data` (contiguous) behind what is there. They may be changed again when this returns."""
        if len(data) >= _STRAIGHT_BYTES and (data.ctypes.data - self.position) % SECTOR == 0:
            edge = -self.position % SECTOR
            self._gather(data[:edge])
            if self.position > self._flushed:
                self._flush(self.position - self._flushed)
            whole = (len(data) - edge) // SECTOR * SECTOR
            self._write_out(data[edge : edge + whole], whole)
            self.position += whole
            data = data[edge + whole :]
        self._gather(data)

    def _gather(self, data: Bytes) -> None:
        while len(data):
            start = self.position - self._flushed
            count = min(len(data), BLOCK_BYTES - start)
            np.copyto(self._block[start : start + count], data[:count])
            self.position += count
            data = data[count:]
            if start + count == BLOCK_BYTES:
                self._flush(BLOCK_BYTES)

    def sync(self) -> tuple[int, str]:
        """Make safe what was written of the bytes given; return its length and SHA-256."""
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
        """Write the first `count` bytes of the block."""
        padded = -(-count // SECTOR) * SECTOR  # the last block: `finish` cuts the file to its size
        self._block[count:padded] = 0
        self._write_out(self._block[:padded], count)

    def _write_out(self, data: Bytes, count: int) -> None:
        """Write `data`, of which `count` bytes belong to the file, and hash these at the same time."""
        hashed = self._beside.submit(self._sha256.update, data[:count])
        try:
            done = 0
            while done < len(data):
                done += self._write(memoryview(data)[done:], self._flushed + done)
        finally:
            hashed.result()
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
        self._beside.shutdown()
        os.close(self._fd)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags | _O_DIRECT, 0o666)
    except OSError:
        pass  # this file system has no direct writes (EINVAL), or there is another problem, which comes again below
    with refused(path):
        return os.open(path, flags, 0o666)


def sector_offset(offset: int) -> int:
    """How far behind the beginning of a sector data must lie in memory to be written at `offset` without a copy."""
    return offset % SECTOR


def in_sectors(memory: Bytes, nbytes: int, start: int) -> Bytes:
    """The `nbytes` of `memory` that begin `start` bytes behind the beginning of its first whole sector."""
    begin = -memory.ctypes.data % SECTOR + start
    return memory[begin : begin + nbytes]
