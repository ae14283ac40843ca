"""Everything that flagrelease asks of `torch.cuda`, `torch.npu` and `torch.musa`, as types; nothing else touches them.

mypy refuses a name or a form of a call that is not written here, and a walk over the source refuses a file that goes
around it (tests/devices). So this is the list to read when a chip is new, and the tests compare it, name by name and
argument by argument, with the signatures that were recorded from the vendors' packages.

What is not here: random numbers. Those of a model are drawn on the CPU; only `bench` fills weights with
`torch.Generator(device)`, which is torch's and needs the vendor's hook `getNewGenerator`, as pinned memory
(`torch.empty(pin_memory=True)`) needs `getPinnedMemoryAllocator`.
"""
# ruff: noqa: N802  (the names are torch's)

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol, cast

from flagrelease.errors import ResourceError


class StreamEvent(Protocol):
    """A place in a stream's queue."""

    def record(self) -> None:
        """Mark what the current stream holds by now."""

    def synchronize(self) -> None:
        """Let the host wait until that is done."""


class WorkStream(Protocol):
    """A queue of work."""

    def wait_stream(self, other: WorkStream, /) -> None:
        """Start what is queued next when all that `other` holds by now is done."""

    def wait_event(self, event: StreamEvent, /) -> None:
        """Start what is queued next when `event` is done."""

    def record_event(self) -> StreamEvent:
        """Mark what the queue holds by now."""


class RecordedGraph(Protocol):
    """Recorded work; what its class is called is in the chip table (`graph_class`)."""

    def replay(self) -> None:
        """Queue all of it."""


class TorchModule(Protocol):
    """What a device needs to be used at all."""

    def is_available(self) -> bool:
        """Whether there is any device."""

    def device_count(self) -> int:
        """How many the process may use."""

    def set_device(self, index: int, /) -> None:
        """Make a device the process's current one."""

    def synchronize(self, index: int, /) -> None:
        """Wait for all work of a device."""

    def get_device_name(self, index: int, /) -> str:
        """What the product is called."""

    def mem_get_info(self, index: int, /) -> tuple[int, int]:
        """(free, total) bytes."""

    def Event(self) -> StreamEvent:
        """Make one."""


class Recording(TorchModule, Protocol):
    """What recording work needs besides, with a class of graphs; where one of it is missing, nothing is recorded."""

    def Stream(self, index: int, /, *, priority: int = 0) -> WorkStream:
        """Make one on a device; -1 goes first."""

    def current_stream(self) -> WorkStream:
        """The one that work is queued to."""

    def stream(self, stream: WorkStream, /) -> AbstractContextManager[object]:
        """Queue to `stream` inside."""

    def graph(self, graph: RecordedGraph, /, *, pool: Any) -> AbstractContextManager[object]:
        """Record into `graph` what is queued inside; `pool`: of `graph_pool_handle`, or None for memory of its own."""


class Extra(Protocol):
    """What is asked for only where it is there."""

    def graph_pool_handle(self) -> Any:
        """A name for memory that recordings share. Without it each has its own."""

    def can_device_access_peer(self, index: int, other: int, /) -> bool:
        """Whether kernels of a device reach another's memory. Without it they are taken not to."""

    def get_device_capability(self, index: int, /) -> tuple[int, int] | None:
        """CUDA's compute capability, which `doctor` shows. Without it, or where it is None, nothing is shown."""

    def get_device_properties(self, index: int, /) -> Any:
        """With `total_memory`, in bytes, which `doctor` shows."""


class CudaStream(Protocol):
    """What else a stream of `torch.cuda` has, for kernels that are launched by NVIDIA's means."""

    cuda_stream: int


class CudaRuntime(Protocol):
    """What `torch.cuda.cudart()` has, of CUDA or of HIP, for memory of the host that is not torch's."""

    def cudaHostRegister(self, address: int, size: int, flags: int, /) -> Any:
        """Keep pages where they are, and let devices read them. Returns an error, whose number is 0 for none."""

    def cudaGetErrorString(self, error: Any, /) -> str:
        """What an error means."""


_PORTABLE, _MAPPED, _READ_ONLY = 1, 2, 8  # flags of cudaHostRegister (CUDA Runtime API, Memory Management)
NEEDED_TO_RECORD = ("Stream", "current_stream", "stream", "graph")


def torch_module(kind: str, module: str | None) -> TorchModule:
    """`torch.<kind>`: those of vendors appear when their own `module` is imported.

    Raises:
        ResourceError: the module is installed and does not load, or it does not bring `torch.<kind>`.
    """
    import torch

    if module is not None:
        try:
            importlib.import_module(module)
        except ImportError as error:  # e.g. the vendor's libraries are not on the path: broken is not absent
            raise ResourceError(
                f"device {kind!r}: the module {module} is installed but does not load: {error}"
            ) from error
    if not hasattr(torch, kind):
        raise ResourceError(f"device {kind!r}: torch has no torch.{kind} after importing {module}")
    return cast(TorchModule, getattr(torch, kind))


def current_cuda_stream() -> int:
    """The address of the current stream, by which kernels for CUDA tell streams apart."""
    import torch

    stream: CudaStream = torch.cuda.current_stream()
    return stream.cuda_stream


def register_for_cuda(address: int, size: int, *, read_only: bool) -> str | None:
    """Let kernels of all devices read memory of the host, a mapped file's too: page-aligned, until the process ends.

    Returns why they cannot, or None. The driver then holds every page of it in memory. `read_only`: the pages are
    mapped for reading alone, which CUDA has to be told and not every device takes.
    """
    import torch

    cuda: Any = torch.cuda
    runtime: CudaRuntime = cuda.cudart()
    error = runtime.cudaHostRegister(address, size, _PORTABLE | _MAPPED | (_READ_ONLY if read_only else 0))
    if int(error) == 0:
        return None
    # The failure stays behind as CUDA's last error, which the next launch would take for its own.
    with suppress(RuntimeError):
        torch.ones(1, device="cuda").add_(1)
    return f"cudaHostRegister: {runtime.cudaGetErrorString(error)}"
