"""`Buffers`: the memory that chunks travel in, from the workers to the files. Their number bounds the memory of a run.

A free buffer is handed to the earliest of the running jobs that wait for one, and no other is woken: a worker that is
woken to find nothing takes the interpreter lock from those that work. Some buffers must stay free for jobs that others
wait for (`Schedule.standing`), so that the bytes which a file needs next always find one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flagrelease.convert.codecs.decoder import U8
from flagrelease.shard.writer import SECTOR, in_sectors


class Stopped(Exception):  # noqa: N818 - the run ends because of another thread's error, or on purpose
    """Raised in a thread that waits when the run has been stopped."""


class Run:
    """What the threads of a run share: one lock, the first error, and the count of bytes written.

    Attributes:
        wake: called with the lock held when those who wait should look again.
    """

    def __init__(self) -> None:
        """Nothing has happened yet."""
        self.lock = threading.Lock()
        self.error: BaseException | None = None
        self.stopped = False
        self.written = 0
        self.wake: Callable[[], None] = lambda: None

    def stop(self, error: BaseException | None = None) -> None:
        """End the run; the first error is the one that is reported."""
        with self.lock:
            if not self.stopped:
                self.error = error
            self.stopped = True
            self.wake()

    def add_written(self, count: int) -> None:
        """Count bytes for the progress display."""
        with self.lock:
            self.written += count


class Standing(NamedTuple):
    """Of a running job: its place among them, from the earliest on, and how many buffers it must leave to others."""

    place: int
    leaves: int


@dataclass(eq=False)
class _Waiting:
    """A job that waits for a buffer."""

    job: int
    changed: threading.Condition
    served: bool = False


class Buffers:
    """A fixed number of byte buffers; longer requests are met with memory of their own and count as one."""

    def __init__(self, run: Run, count: int, nbytes: int, standing: Callable[[int], Standing]) -> None:
        """`count` buffers of `nbytes`, allocated when first used. `standing` is asked with the run's lock held."""
        self._run = run
        self._nbytes = nbytes
        self._left = count
        self._standing = standing
        self._free: list[U8] = []
        self._waiting: list[_Waiting] = []
        run.wake = self._look_again

    def take(self, nbytes: int, job: int, start: int = 0) -> U8:
        """Wait for a buffer.

        Args:
            nbytes: its length.
            job: the number of the running job that asks.
            start: how many bytes behind the beginning of a sector it is to begin (`shard.writer.sector_offset`).

        Raises:
            Stopped: the run was stopped.
        """
        with self._run.lock:
            waiting = _Waiting(job, threading.Condition(self._run.lock))
            self._waiting.append(waiting)
            self._serve()
            waiting.changed.wait_for(lambda: waiting.served or self._run.stopped)
            if self._run.stopped:
                raise Stopped
            memory = self._free.pop() if self._free and nbytes <= self._nbytes else None
        if memory is None:
            memory = np.empty(max(nbytes, self._nbytes) + 2 * SECTOR, dtype=np.uint8)
        return in_sectors(memory, nbytes, start)

    def give(self, buffer: U8) -> None:
        """Put a buffer back."""
        whole = buffer.base
        assert whole is not None, "a buffer is a view of its memory"
        with self._run.lock:
            self._left += 1
            if whole.nbytes == self._nbytes + 2 * SECTOR:
                self._free.append(whole)
            self._serve()

    def _serve(self) -> None:
        """Hand free buffers to those who wait, to the earliest job first."""
        if not self._left or not self._waiting:
            return
        for waiting in sorted(self._waiting, key=lambda one: self._standing(one.job).place):
            if self._left > self._standing(waiting.job).leaves:
                self._left -= 1
                self._waiting.remove(waiting)
                waiting.served = True
                waiting.changed.notify()

    def _look_again(self) -> None:
        if self._run.stopped:
            for waiting in self._waiting:
                waiting.changed.notify()
        else:
            self._serve()


class Shared:
    """A buffer on its way to several files; `release` by the last of them gives it back."""

    def __init__(self, buffers: Buffers, data: U8, holders: int) -> None:
        """`holders` releases are awaited."""
        self._buffers = buffers
        self._data = data
        self._holders = holders
        self._lock = threading.Lock()

    def release(self) -> None:
        """One holder is done."""
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            self._buffers.give(self._data)
