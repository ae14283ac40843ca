"""`Device`: an accelerator, by names of the chip table. What it asks of a torch module is all in `accelerator.py`."""

from __future__ import annotations

import gc
import importlib.util
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from flagrelease.accelerator import (
    NEEDED_TO_RECORD,
    RecordedGraph,
    Recording,
    TorchModule,
    WorkStream,
    register_for_cuda,
    torch_module,
)
from flagrelease.chips.table import Chip, get_chip, load_chips
from flagrelease.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Device:
    """A torch device: its type (`cpu` or one of the chip table), its index, the torch.distributed backend for it."""

    type: str
    index: int
    dist_backend: str

    @property
    def torch_device(self) -> str:
        """The device string of torch."""
        return self.type if self.type == "cpu" else f"{self.type}:{self.index}"

    @property
    def name(self) -> str:
        """What the device calls itself; for the CPU, its architecture."""
        return platform.machine() if self.type == "cpu" else _api(self.type).get_device_name(self.index)

    @property
    def graph_class(self) -> str | None:
        """What its torch module calls a recording of work; None for the CPU, and where the chip table has none."""
        return None if self.type == "cpu" else _types()[self.type].graph_class

    @property
    def why_eager(self) -> str | None:
        """Why `capture` records nothing; None where it does."""
        if self.type == "cpu":
            return "a CPU has no graphs"
        if self.graph_class is None:
            return f"no graphs of torch.{self.type} are known: {_types()[self.type].why_null['graph_class']}"
        api = _api(self.type)
        missing = next((name for name in (self.graph_class, *NEEDED_TO_RECORD) if not hasattr(api, name)), None)
        return None if missing is None else f"torch.{self.type} has no {missing} in this version"

    @property
    def capturing(self) -> str:
        """What `capture` does, in words: `captured: CUDAGraph`, or `eager: ` and why."""
        return f"captured: {self.graph_class}" if self.why_eager is None else f"eager: {self.why_eager}"

    def set_current(self) -> None:
        """Make it the default of its type in this process."""
        if self.type != "cpu":
            _api(self.type).set_device(self.index)

    def synchronize(self) -> None:
        """Wait until all work queued on it is done."""
        if self.type != "cpu":
            _api(self.type).synchronize(self.index)

    def memory_pool(self) -> Any:
        """Memory for recordings of which one runs at a time: see `capture`.

        None where nothing is recorded, or where each recording has to have its own: that takes more memory, no less.
        """
        handle = None if self.why_eager is not None else getattr(_api(self.type), "graph_pool_handle", None)
        return None if handle is None else handle()

    def capture(self, work: Callable[[], None], pool: Any = None) -> Callable[[], None]:
        """Record what `work` queues, and return what queues all of it at once.

        `work` runs twice before it is recorded, so that kernels are compiled; whatever it writes must bear that. Where
        `why_eager` has a reason, `work` itself is returned. Recordings of one `pool` (of `memory_pool`) use the same
        memory, so that what one of them has made there is lost when another runs; None: the recording has its own.
        """
        if self.why_eager is not None:
            return work
        api = _recording(self.type)
        beside = _recorder(self.type, self.index)
        beside.wait_stream(api.current_stream())
        with api.stream(beside):
            work()
            work()
        api.current_stream().wait_stream(beside)
        graph: RecordedGraph = getattr(api, str(self.graph_class))()
        with _without_collection(), api.graph(graph, pool=pool):
            work()
        return graph.replay

    def beside(self, lane: int, work: Callable[..., T], *arguments: Any) -> Callable[[], T]:
        """Queue `work(*arguments)` on another stream, behind all that is queued by now, beside what is queued next.

        Returns what makes the current stream wait for the work and gives its result; nothing may use the result, or
        write to what the work reads, before. Works of one `lane` come one after the other. A recording holds all
        streams. Where `why_eager` has a reason, the work is done at once. All that the work reads and that may be freed
        is an argument, for memory is given out again in the order in which each stream's tensors are freed here,
        whatever the other streams still read:
        - an argument, of the current stream's memory, is held until the current stream waits for the work;
        - the result, of the lane's, is freed when its last use is queued, and so before the next work goes to the lane,
          which waits for all that the current stream has queued by then.
        """
        if self.why_eager is not None:
            result = work(*arguments)
            return lambda: result
        api, stream = _recording(self.type), _lane(self.type, self.index, lane)
        stream.wait_stream(api.current_stream())
        with api.stream(stream):
            result = work(*arguments)
            done = stream.record_event()
        held = [arguments]

        def join() -> T:
            api.current_stream().wait_event(done)
            held.clear()
            return result

        return join

    def fetch(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Queue a copy of `tensor` to the host, behind what the current stream holds by now.

        Returns what waits for this copy, and for nothing that is queued later, and gives it.
        """
        if self.type == "cpu":
            copy = tensor.clone()
            return lambda: copy
        import torch

        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        done = _api(self.type).Event()
        done.record()

        def wait() -> Tensor:
            done.synchronize()
            return host

        return wait

    def finish_queued(self) -> None:
        """Wait for what the current stream holds by now, and for nothing that is queued later."""
        if self.type != "cpu":
            done = _api(self.type).Event()
            done.record()
            done.synchronize()

    def reaches(self, others: Sequence[int]) -> bool:
        """Whether a kernel on it can read and write the memory of the devices of these indices, all of its type."""
        can = None if self.type == "cpu" else getattr(_api(self.type), "can_device_access_peer", None)
        return can is not None and all(other < _count(self.type) and can(self.index, other) for other in others)

    def reach_host(self, address: int, size: int, *, read_only: bool) -> str | None:
        """Let its kernels read memory of the host through the pointer, until the process ends; or say why they cannot.

        Args:
            address: of the first byte, aligned to a page.
            size: bytes; all of them are held in memory from then on.
            read_only: whether the pages are mapped for reading alone.
        """
        if self.type == "cpu":
            return None
        if self.type != "cuda":
            return f"torch.{self.type} is not known to pin it"
        return register_for_cuda(address, size, read_only=read_only)

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""
        if self.type == "cpu":
            page = os.sysconf("SC_PAGE_SIZE")
            return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page
        free, total = _api(self.type).mem_get_info(self.index)
        return free, total


@contextmanager
def _without_collection() -> Iterator[None]:
    """Garbage waits: among it may be an earlier graph, and destroying one breaks a recording."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@cache
def _recorder(kind: str, index: int) -> WorkStream:
    """The stream where work runs before it is recorded: always the same, so that memory freed there is used again."""
    return _recording(kind).Stream(index)


@cache
def _lane(kind: str, index: int, lane: int) -> WorkStream:
    """A stream of `Device.beside`: always the same, so that what is freed there serves the next work.

    Its work goes first where both find room: there is less of it.
    """
    return _recording(kind).Stream(index, priority=-1)


def open_device(name: str, index: int = 0) -> Device:
    """The device `name`: `auto`, `cpu`, a torch device type of the chip table, or a chip.

    `auto` is the device of this index of the first type in the table that has any, and the CPU where none has.

    Raises:
        UsageError: no such name.
        ResourceError: its torch module is not installed or does not load, or there is no device of this index.
    """
    if name == "cpu":
        return Device("cpu", 0, "gloo")
    types = _types()
    if name == "auto":
        present = [kind for kind in types if _has_module(kind) and _count(kind) > 0]
        if not present:
            return Device("cpu", 0, "gloo")
        name = present[0]
    kind = name if name in types else _of_chip(name)
    if not _has_module(kind):
        raise ResourceError(f"device {name!r} needs the module {types[kind].torch_module}, which is not installed")
    count = _count(kind)
    if index >= count:
        raise ResourceError(f"device {name!r}: no index {index}; torch.{kind} shows {count} devices")
    return Device(kind, index, types[kind].dist_backend)


def _of_chip(name: str) -> str:
    try:
        return get_chip(name).torch_device
    except UsageError as error:
        raise UsageError(f"device {name!r} is none of auto, cpu, {', '.join(_types())}; {error}") from None


def _types() -> dict[str, Chip]:
    """Torch device type -> a chip of it, in the table's order; all of one type have the same seams."""
    types: dict[str, Chip] = {}
    for chip in load_chips().values():
        types.setdefault(chip.torch_device, chip)
    return types


def _has_module(kind: str) -> bool:
    module = _types()[kind].torch_module
    return module is None or importlib.util.find_spec(module) is not None


def _count(kind: str) -> int:
    api = _api(kind)
    return api.device_count() if api.is_available() else 0


def _api(kind: str) -> TorchModule:
    return torch_module(kind, _types()[kind].torch_module)


def _recording(kind: str) -> Recording:
    """The module of a device that `why_eager` has found to record."""
    return cast(Recording, _api(kind))
