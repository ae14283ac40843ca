"""`GatheredTensor`: one logical tensor read by rows from wherever its parts lie in files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import numpy.typing as npt

from flagrelease.errors import VerificationError
from flagrelease.shard.files import TensorReading
from flagrelease.shard.header import DTYPE_BITS, TensorMeta
from flagrelease.verify.splits import Box, as_matrix

Bytes = npt.NDArray[np.uint8]

# Large enough that threads seldom meet at the interpreter lock, which each needs for some microseconds between two
# steps of a chunk; small enough that the arrays of a chunk nearly stay in a core's cache.
CHUNK_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class GatheredTensor:
    """A whole tensor: its dtype, its logical shape as a header writes it, and for each box the files that hold it.

    `reading` reads files that are not on this machine.

    Only the first copy of a box is read; that the copies agree is a check of its own (`replicas`). The last boxes of an
    Engram table reach behind its last row.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    boxes: dict[Box, tuple[TensorMeta, ...]]
    reading: TensorReading | None = None

    @property
    def rows(self) -> int:
        """Rows of the tensor as a matrix."""
        return as_matrix(self.shape)[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the whole tensor."""
        return as_matrix(self.shape)[1] * DTYPE_BITS[self.dtype] // 8

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor, each box once."""
        return self.rows * self.row_bytes

    def chunks(self, multiple: int) -> Iterator[tuple[int, int]]:
        """Row ranges of about `CHUNK_BYTES` that begin at multiples of `multiple` rows and cover the tensor."""
        step = max(1, CHUNK_BYTES // max(1, self.row_bytes * multiple)) * multiple
        return ((start, min(start + step, self.rows)) for start in range(0, self.rows, step))

    def read(self, start: int, stop: int) -> Bytes:
        """Rows [start, stop) as bytes, shape [stop - start, row_bytes].

        Raises:
            VerificationError: a file cannot be read or has become shorter than its header says.
        """
        out = np.empty((stop - start, self.row_bytes), np.uint8)
        for box, copies in self.boxes.items():
            top, bottom = max(start, box.top), min(stop, box.bottom)
            if top >= bottom:
                continue
            left, right = self._byte_columns(box)
            offset = (top - box.top) * (right - left)
            target = out[top - start : bottom - start, left:right]
            if target.flags.c_contiguous:
                self._read(copies[0], offset, target)
            else:
                part = np.empty((bottom - top, right - left), np.uint8)
                self._read(copies[0], offset, part)
                target[:] = part
        return out

    def filling(self) -> Iterator[tuple[PurePath, Bytes]]:
        """File and bytes of the rows that ranks hold behind the last row of the tensor."""
        for box, copies in self.boxes.items():
            first = max(box.top, self.rows)
            if box.bottom > first:
                left, right = self._byte_columns(box)
                rows = np.empty((box.bottom - first, right - left), np.uint8)
                self._read(copies[0], (first - box.top) * (right - left), rows)
                yield copies[0].file, rows

    def locate(self, row: int, byte: int) -> tuple[PurePath, int]:
        """The file, and the offset in it, of a byte of a row."""
        for box, copies in self.boxes.items():
            left, right = self._byte_columns(box)
            if box.top <= row < box.bottom and left <= byte < right:
                return copies[0].file, copies[0].begin + (row - box.top) * (right - left) + byte - left
        raise ValueError(f"tensor {self.name!r} has no row {row}, byte {byte}")

    def _read(self, meta: TensorMeta, offset: int, target: Bytes) -> None:
        if self.reading is None:
            read_into(meta.file, meta.begin + offset, target)
        else:
            self.reading.read(meta, offset, target.reshape(-1))

    def _byte_columns(self, box: Box) -> tuple[int, int]:
        bits = DTYPE_BITS[self.dtype]
        return box.left * bits // 8, box.right * bits // 8


def whole(meta: TensorMeta, reading: TensorReading | None = None) -> GatheredTensor:
    """The tensor of one file, uncut. `reading`: where the file is not on this machine."""
    rows, columns = as_matrix(meta.shape)
    return GatheredTensor(meta.name, meta.dtype, meta.shape, {Box(0, rows, 0, columns): (meta,)}, reading)


def read_into(path: PurePath, offset: int, target: Bytes) -> None:
    """Fill the contiguous `target` from `path`, beginning at byte `offset`.

    Raises:
        VerificationError: the file cannot be read, or ends too early.
    """
    view = memoryview(target.reshape(-1))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while view:
                count = os.preadv(descriptor, [view], offset)
                if count == 0:
                    raise VerificationError(f"{path}: ends at byte {offset}, before the end its header gives")
                view, offset = view[count:], offset + count
        finally:
            os.close(descriptor)
    except OSError as error:
        raise VerificationError(f"{path}: cannot be read ({error.strerror})") from error
