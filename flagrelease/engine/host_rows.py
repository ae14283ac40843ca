"""Tables too large for a device stay with the host: rows mapped from the release's file, which kernels read by pointer.

DeepSeek-V4.1's two Engram tables are 189 GiB, of which a token reads 48 rows. A mapping takes no memory of its own: the
pages are the file's cache, which all ranks of a node share. Kernels read them once they are pinned, and pinning holds
them in memory. What cannot be pinned costs what `HostRows.how` says.

Times are of one H200 with a table of 16 GB (24 rows are one token's of one table, 1,536 those of 64 tokens).
"""

from __future__ import annotations

import mmap
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

import torch
from torch import Tensor

from flagrelease.device import Device
from flagrelease.engine.intake import Intake
from flagrelease.errors import CheckpointError
from flagrelease.shard.header import TensorMeta

_PIECE = 16 << 20  # bytes that one thread reads
_GIB = 1 << 30
_THROUGH_THE_POINTER = "kernels read rows through the pointer (24 in 2.5 us, 1,536 in 13)"
_BY_THE_HOST = (
    "the host gathers the rows of every step and waits for the device before (24 in 20 us, 1,536 in 77, where they are "
    "in memory; a read of the disk for each that is not), and no step can be recorded"
)


@dataclass(frozen=True, slots=True)
class HostRows:
    """Bytes of a stored tensor in the host's memory.

    Attributes:
        data: uint8 [size], not to be written to. The file must stay as it is while the process runs.
        pinned: whether kernels of the device reach it.
        how: what was done and what a step costs, for people.
    """

    data: Tensor
    pinned: bool
    how: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is read by rows, on the device or with the host: `Operators.engram_rows` takes either.

    Attributes:
        codes: E4M3 or plain [R, w], this rank's rows.
        scales: E8M0 [R, w/32] of codes; None of a plain table.
        how: where they are and what a step costs, for people.
    """

    codes: Tensor
    scales: Tensor | None
    how: str


def host_rows(meta: TensorMeta, begin: int, size: int, intake: Intake) -> HostRows:
    """`size` bytes of a stored tensor from `begin` on, for operators on the device of `intake`.

    In this order: the mapped file, pinned; a pinned copy of it; the mapped file as it is. A CPU takes the last at once:
    its operators read it like other memory.

    Raises:
        CheckpointError: the file cannot be mapped, or is shorter than its header says.
    """
    device = intake.opened
    mapped = _mapped(meta.file, meta.name, meta.begin + begin, size, _identity(meta))
    if device.type == "cpu":
        return HostRows(mapped.data, False, f"{_size(size)} mapped from {meta.file}")
    free = free_memory()
    if size > free:
        return HostRows(mapped.data, False, _unpinned(size, f"{_size(free)} of memory are free", meta))
    _read_ahead(meta, begin, size, intake)
    why = _pinned_once(mapped, device)
    if why is None:
        return HostRows(mapped.data, True, f"{_size(size)} mapped from {meta.file} and pinned: {_THROUGH_THE_POINTER}")
    if 2 * size > free:
        return HostRows(mapped.data, False, _unpinned(size, f"{why}; a copy does not fit beside it", meta))
    copied = _Mapped.anonymous(size)
    not_copied = device.reach_host(copied.address, copied.length, read_only=False)
    if not_copied is not None:
        return HostRows(mapped.data, False, _unpinned(size, f"{why}; nor a copy of it: {not_copied}", meta))
    _fill(copied.data, meta, begin, intake)
    _KEPT.append(copied)
    how = (
        f"{_size(size)} of {meta.file} copied and pinned, since the file's own pages cannot be ({why}): the memory is "
    )
    return HostRows(copied.data, True, f"{how}this process's alone; {_THROUGH_THE_POINTER}")


def free_memory() -> int:
    """Bytes that the host can give to this process, the file cache's among them."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.exists() else "max"
    return min(free, int(text)) if text.isdecimal() else free


@dataclass(frozen=True, slots=True)
class _Mapped:
    """Mapped pages: `length` bytes from `address` on, whose interesting part is `data`."""

    data: Tensor
    address: int
    length: int

    @classmethod
    def of(cls, pages: mmap.mmap, skipped: int, size: int) -> _Mapped:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")  # and nothing writes to it
            whole = torch.frombuffer(pages, dtype=torch.uint8)
        return cls(whole[skipped : skipped + size], whole.data_ptr(), len(pages))

    @classmethod
    def anonymous(cls, size: int) -> _Mapped:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return cls.of(pages, 0, size)


# What devices reach stays mapped until the process ends: a kernel may be reading it.
_KEPT: list[_Mapped] = []


@cache
def _mapped(file: PurePath, name: str, begin: int, size: int, identity: tuple[int, ...]) -> _Mapped:
    """Of an unchanged file the same pages again: a model that is loaded twice maps and pins nothing twice."""
    skipped = begin % mmap.ALLOCATIONGRANULARITY
    try:
        with Path(file).open("rb") as opened:
            # Shared and for reading alone: of a private mapping some kernels would copy each page that is pinned.
            pages = mmap.mmap(opened.fileno(), size + skipped, access=mmap.ACCESS_READ, offset=begin - skipped)
    except ValueError as error:
        raise CheckpointError(f"{file}: tensor {name!r}: the file ends inside it: truncated") from error
    except OSError as error:
        raise CheckpointError(f"{file}: tensor {name!r}: cannot be mapped: {error.strerror}") from error
    pages.madvise(mmap.MADV_RANDOM)  # a row is not followed by its neighbours
    return _Mapped.of(pages, skipped, size)


def _identity(meta: TensorMeta) -> tuple[int, ...]:
    try:
        found = Path(meta.file).stat()
    except OSError as error:
        raise CheckpointError(f"{meta.file}: tensor {meta.name!r}: {error.strerror}") from error
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


_PINNED: dict[tuple[int, str], str | None] = {}  # by address and device type, for devices of a process share pages


def _pinned_once(mapped: _Mapped, device: Device) -> str | None:
    key = mapped.address, device.type
    if key not in _PINNED:
        _PINNED[key] = device.reach_host(mapped.address, mapped.length, read_only=True)
    return _PINNED[key]


def _read_ahead(meta: TensorMeta, begin: int, size: int, intake: Intake) -> None:
    """Bring the bytes into the file cache by threads; pinning alone would read page by page."""
    pieces = range(begin, begin + size, _PIECE)
    for _ in intake.each(lambda at: intake.read(meta, at, min(_PIECE, begin + size - at)).shape, pieces):
        pass


def _fill(copy: Tensor, meta: TensorMeta, begin: int, intake: Intake) -> None:
    def fill(at: int) -> None:
        part = copy[at : at + _PIECE]
        part.copy_(intake.read(meta, begin + at, len(part)))

    for _ in intake.each(fill, range(0, len(copy), _PIECE)):
        pass


def _unpinned(size: int, why: str, meta: TensorMeta) -> str:
    return f"{_size(size)} mapped from {meta.file}, not pinned ({why}): {_BY_THE_HOST}"


def _size(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
