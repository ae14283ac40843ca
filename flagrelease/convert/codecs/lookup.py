"""The one loop of the converter: bytes to output bits through a table chosen by block. On the CPU (numba) or a GPU.

Both give the same bits: the tables hold every rounding, so a look-up computes nothing.

numba compiles the loops when a process first uses them: about a second for these, five for those of scales by row. It
could keep the result on disk (`cache=True`), but then it fails where it finds no folder to write to, and on every later
run once a file of the cache is damaged. Seconds are not worth that beside hours: nothing is kept.
"""

from __future__ import annotations

from typing import Any, Protocol

import numba
import numpy as np
from numpy.typing import NDArray

from flagrelease.convert.codecs.decoder import U8
from flagrelease.convert.codecs.tables import Tables

Index = NDArray[np.uint8] | NDArray[np.int32]


class Lookup(Protocol):
    """Decodes one chunk: `codes` uint8 [R, C]; `index` [ceil(R/rows), ceil(C/columns)] picks the table of a block
    of (rows, columns) bytes; `out` has the tables' dtype and the shape of `codes`."""

    def __call__(self, codes: U8, index: Index, block: tuple[int, int], tables: Tables, out: NDArray[Any]) -> None:
        """Write `tables.entries[index of block, code]` to `out`."""
        ...


@numba.njit(nogil=True)
def _decode(codes, index, rows, columns, entries, out):  # type: ignore[no-untyped-def]
    for r in range(codes.shape[0]):
        for b in range(index.shape[1]):
            table = entries[index[r // rows, b]]
            for c in range(b * columns, min((b + 1) * columns, codes.shape[1])):
                out[r, c] = table[codes[r, c]]


@numba.njit(nogil=True)
def _count(codes, index, rows, columns, inexact):  # type: ignore[no-untyped-def]
    total = 0
    for r in range(codes.shape[0]):
        for b in range(index.shape[1]):
            table = inexact[index[r // rows, b]]
            for c in range(b * columns, min((b + 1) * columns, codes.shape[1])):
                total += table[codes[r, c]]
    return total


@numba.njit(nogil=True)
def _contains(codes, wanted):  # type: ignore[no-untyped-def]
    for r in range(codes.shape[0]):
        seen = False
        for c in range(codes.shape[1]):
            seen |= wanted[codes[r, c]]
        if seen:
            return True
    return False


def cpu_lookup(codes: U8, index: Index, block: tuple[int, int], tables: Tables, out: NDArray[Any]) -> None:
    """`Lookup` on the CPU. Releases the GIL."""
    _decode(codes, index, block[0], block[1], tables.entries, out)


def count_lost(codes: U8, index: Index, block: tuple[int, int], tables: Tables) -> int:
    """How many elements of a chunk the output cannot hold exactly."""
    return int(_count(codes, index, block[0], block[1], tables.inexact))


def contains(codes: U8, wanted: NDArray[np.bool_]) -> bool:
    """Whether one of the byte values marked in `wanted` [256] is among `codes`."""
    return bool(_contains(codes, wanted))
