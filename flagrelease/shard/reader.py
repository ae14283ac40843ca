"""`TensorReader`: ranges of tensors by `pread`: no mapping, no page faults, nothing read that was not asked for."""

from __future__ import annotations

import os
import threading
from pathlib import PurePath
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flagrelease.errors import CheckpointError
from flagrelease.shard.header import TensorMeta

Bytes = NDArray[np.uint8]


class TensorReader:
    """Open files, shared by threads. Use as a context."""

    def __init__(self) -> None:
        """No file is open yet."""
        self._descriptors: dict[PurePath, int] = {}
        self._lock = threading.Lock()

    def read(self, tensor: TensorMeta, offset: int, out: Bytes) -> None:
        """Fill `out` with the tensor's bytes from `offset` on.

        Raises:
            CheckpointError: the file cannot be read, or has become shorter than its header said.
        """
        if offset + len(out) > tensor.nbytes:
            raise ValueError(f"{tensor.name}: {offset} + {len(out)} bytes of {tensor.nbytes}")
        done = 0
        while done < len(out):
            try:
                view = memoryview(out)[done:]
                count = os.preadv(self._descriptor(tensor.file), [view], tensor.begin + offset + done)
            except OSError as error:
                raise CheckpointError(f"{tensor.file}: tensor {tensor.name!r}: {error.strerror}") from error
            if count == 0:
                raise CheckpointError(f"{tensor.file}: tensor {tensor.name!r}: the file ends inside it: truncated")
            done += count

    def _descriptor(self, path: PurePath) -> int:
        with self._lock:
            if path not in self._descriptors:
                self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[path]

    def __enter__(self) -> TensorReader:
        """Files are opened when first read."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
