"""The one loop of the converter: bytes to output bits through a table chosen by block. On the CPU or a GPU.

Both give the same bits: the tables hold every rounding, so a look-up computes nothing. The CPU's loop is compiled when
a process first uses it (`native.py`), in some hundredths of a second, so nothing is kept on disk, where a damaged file
or a folder that cannot be written would make the next run fail.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flagrelease.convert.codecs.decoder import U8
from flagrelease.convert.codecs.native import compiled
from flagrelease.convert.codecs.tables import Tables

Index = NDArray[np.uint8] | NDArray[np.int32]

# Blocks up to this many bytes wide get a loop of their own, with the width as a constant.
_NARROW = 32


class Lookup(Protocol):
    """Decodes one chunk: `codes` uint8 [R, C]; `index` [ceil(R/rows), ceil(C/columns)] picks the table of a block
    of (rows, columns) bytes; `out` has the tables' dtype and the shape of `codes`."""

    def __call__(self, codes: U8, index: Index, block: tuple[int, int], tables: Tables, out: NDArray[Any]) -> None:
        """Write `tables.entries[index of block, code]` to `out`."""
        ...


def cpu_lookup(codes: U8, index: Index, block: tuple[int, int], tables: Tables, out: NDArray[Any]) -> None:
    """`Lookup` on the CPU. Releases the GIL. `out` is contiguous."""
    _run(codes, index, block, tables.entries, out)


def count_lost(codes: U8, index: Index, block: tuple[int, int], tables: Tables) -> int:
    """How many elements of a chunk the output cannot hold exactly."""
    return _run(codes, index, block, tables.inexact, None)


def contains(codes: U8, wanted: NDArray[np.bool_]) -> bool:
    """Whether one of the byte values marked in `wanted` [256] is among `codes`."""
    values = np.flatnonzero(wanted).astype(np.uint8)  # two of FP8; in another type, every code would be converted
    return any(bool((codes == value).any()) for value in values)


def _run(codes: U8, index: Index, block: tuple[int, int], entries: NDArray[Any], out: NDArray[Any] | None) -> int:
    """Look every code up; write the entries to `out`, or without it return their sum."""
    assert out is None or (out.flags.c_contiguous and out.dtype == entries.dtype and out.shape == codes.shape)
    codes, index, entries = (np.ascontiguousarray(one) for one in (codes, index, entries))
    narrow = block[1] if block[1] <= _NARROW else None
    loop = compiled(index.itemsize * 8, entries.itemsize * 8, narrow, out is None)
    target = entries if out is None else out
    addresses = [one.ctypes.data for one in (codes, index, entries, target)]
    return loop(*addresses, *codes.shape, *block, index.shape[-1])
