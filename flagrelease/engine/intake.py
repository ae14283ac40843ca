"""`Intake`: bytes of stored tensors on their way to the device, several at once.

One thread reads a file at a fraction of what a disk gives, and copies to a device at less than half of the link's rate
from memory that is not pinned. So threads read, each into pinned memory of torch's pool, from where the device fetches
by itself while the others read on.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from flagrelease.device import Device
from flagrelease.shard.header import TensorMeta
from flagrelease.shard.reader import TensorReader

S = TypeVar("S")
T = TypeVar("T")

_PIECE = 16 << 20  # bytes that one thread reads of a large tensor
_MOST_THREADS = 16  # enough for a disk, and for a memory, wherever it was tried


class Intake:
    """Open files and threads that read them. Use as a context, and from one thread."""

    def __init__(self, device: Device, threads: int | None = None) -> None:
        """No file is open yet. `threads`: None: one for each processor that this process may use, up to 16."""
        self.device, self.opened = torch.device(device.torch_device), device
        self._reader = TensorReader()
        threads = threads or max(2, min(_MOST_THREADS, len(os.sched_getaffinity(0))))
        self._ahead = 2 * threads
        self._pool = ThreadPoolExecutor(threads, "intake", initializer=device.set_current)

    def read(self, meta: TensorMeta, begin: int, size: int) -> Tensor:
        """Bytes of a tensor on the host, uint8 [size], pinned if there is a device to copy them to.

        Raises:
            CheckpointError: the file cannot be read.
        """
        host = torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type != "cpu")
        self._reader.read(meta, begin, host.numpy())
        return host

    def fetch(self, meta: TensorMeta, begin: int, size: int) -> Tensor:
        """Bytes of a tensor on the device, uint8 [size], read by this thread.

        Raises:
            CheckpointError: the file cannot be read.
        """
        there = self.read(meta, begin, size).to(self.device, non_blocking=True)
        self.opened.finish_queued()  # else threads would pin memory without end while a device is busy
        return there

    def fetch_large(self, meta: TensorMeta, begin: int, size: int) -> Tensor:
        """Like `fetch`, in pieces that the threads read beside each other. Not to be called by a work of `each`.

        Raises:
            CheckpointError: the file cannot be read.
        """
        if size <= _PIECE:
            return self.fetch(meta, begin, size)
        whole = torch.empty(size, dtype=torch.uint8, device=self.device)

        def fill(at: int) -> None:
            part = whole[at : at + _PIECE]
            if self.device.type == "cpu":
                self._reader.read(meta, begin + at, part.numpy())
            else:
                part.copy_(self.fetch(meta, begin + at, len(part)))

        for _ in self.each(fill, range(0, size, _PIECE)):
            pass
        return whole

    def each(self, work: Callable[[S], T], arguments: Iterable[S]) -> Iterator[T]:
        """`work` of every argument by the threads, in the order of arguments; a few are begun ahead of the last taken.

        Raises:
            CheckpointError: a file cannot be read, or whatever else the first work that fails raises.
        """
        begun = deque[Future[T]]()
        try:
            for argument in arguments:
                begun.append(self._pool.submit(work, argument))
                if len(begun) > self._ahead:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()

    def __enter__(self) -> Intake:
        """Files are opened when first read."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads and close all files."""
        self._pool.shutdown(cancel_futures=True)
        self._reader.__exit__(kind, error, trace)
