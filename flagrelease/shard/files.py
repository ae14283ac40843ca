"""`CheckpointFiles`: where the files of a checkpoint are, and how their bytes are read: a folder, a hub's repository.

Everything that looks at a checkpoint asks this and opens no path itself, so that it works the same wherever the files
are. A file is named by its path inside the checkpoint, with forward slashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flagrelease.shard.header import Header, TensorMeta

Bytes = NDArray[np.uint8]
Told = Callable[[int, int], None]  # (done, of how many)


class TensorReading(Protocol):
    """Open files, shared by threads."""

    def read(self, tensor: TensorMeta, offset: int, out: Bytes) -> None:
        """Fill `out` with the tensor's bytes from `offset` on.

        Raises:
            CheckpointError: the file cannot be read, or has become shorter than its header said.
            NetworkError: a hub does not give the bytes.
        """
        ...


class CheckpointFiles(Protocol):
    """The files of one checkpoint. Can be pickled; whoever unpickles it opens what it needs itself."""

    @property
    def root(self) -> PurePath:
        """What messages and records call the checkpoint; `root / name` is what they call a file."""
        ...

    @property
    def folder(self) -> Path | None:
        """The folder that the files lie in; None if they are not on this machine."""
        ...

    @property
    def hub(self) -> str | None:
        """The hub whose listing `stated` is; None for a folder."""
        ...

    @property
    def stated(self) -> Mapping[str, str]:
        """File -> what its hub's listing states: a SHA-256 or git's SHA-1, in hexadecimal digits."""
        ...

    @property
    def memory_bytes(self) -> int:
        """What reading its tensors holds in memory at most, beside what the reader gives."""
        ...

    def names(self) -> Sequence[str]:
        """All files, hidden ones too, sorted; only the files of links that lead somewhere.

        Raises:
            CheckpointError: there is no such checkpoint.
        """
        ...

    def size(self, name: str) -> int:
        """Bytes of a file."""
        ...

    def stamp(self, name: str) -> str:
        """What changes when somebody writes the file: unfinished work is bound to it."""
        ...

    def read(self, name: str) -> bytes:
        """A whole file; meant for small ones.

        Raises:
            CheckpointError: there is no such file, or it cannot be read.
        """
        ...

    def find(self, name: str) -> bytes | None:
        """`read`, or None if there is no such file."""
        ...

    def stream(self, name: str) -> Iterator[bytes | memoryview]:
        """A whole file, front to back, in blocks; each is good until the next is asked for.

        Raises:
            CheckpointError: the file cannot be read.
            NetworkError: a hub does not give the bytes.
        """
        ...

    def headers(self, names: Sequence[str], told: Told) -> list[Header]:
        """The headers of files, in the order of `names`. `told(done, total)` is called after each.

        Raises:
            CheckpointError: a file cannot be read, is truncated, or breaks a rule of the format.
        """
        ...

    def tensors(self, wanted: Sequence[tuple[TensorMeta, int]] | None = None) -> AbstractContextManager[TensorReading]:
        """Open the files for reading tensors, until the context ends.

        Args:
            wanted: tensors, and how many bytes of the beginning of each, that will be read once in this order; what
                is far away fetches them ahead, many in one request. None: whatever the reader finds it needs.
        """
        ...
