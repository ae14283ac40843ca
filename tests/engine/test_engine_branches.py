"""Work beside work: what waits for what, what is held how long, and that the device gives what one stream gives."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from flagrelease import device as device_module
from flagrelease.device import Device, open_device
from flagrelease.engine.decode.branches import Branches
from flagrelease.engine.kernels import early_launch
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.kernels.triton_operators import TritonOperators


class Streams(SimpleNamespace):
    """A torch module with graphs and streams that writes down, by number, what is asked of which stream."""

    def __init__(self) -> None:
        super().__init__(CUDAGraph=object, graph=object)
        self.log: list[tuple[int, str, object]] = []
        self.count = 0
        self.current = self.Stream(0)

    def Stream(self, index: int, priority: int = 0) -> SimpleNamespace:  # noqa: N802  (torch's name)
        assert index == 0
        number, self.count = self.count, self.count + 1
        return SimpleNamespace(
            cuda_stream=number,
            wait_stream=lambda other: self.log.append((number, "waits for", other.cuda_stream)),
            wait_event=lambda event: self.log.append((number, "waits until", event)),
            record_event=lambda: f"{number} did {sum(entry[0] == number for entry in self.log)}",
        )

    def current_stream(self) -> SimpleNamespace:
        return self.current

    @contextmanager
    def stream(self, stream: SimpleNamespace) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def kernel(self, name: str) -> str:
        self.log.append((self.current.cuda_stream, "does", name))
        return name


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[Streams]:
    streams = Streams()
    monkeypatch.setattr(torch, "cuda", streams)
    device_module._lane.cache_clear()
    yield streams
    device_module._lane.cache_clear()


def test_what_waits_for_what(streams: Streams) -> None:
    device = Device("cuda", 0, "nccl")
    first = device.beside(0, streams.kernel, "a")
    streams.kernel("b")
    second = device.beside(0, streams.kernel, "c")
    streams.kernel("d")
    assert first() == "a"
    streams.kernel("e")
    assert second() == "c"
    assert streams.log == [
        (1, "waits for", 0),
        (1, "does", "a"),
        (0, "does", "b"),
        (1, "waits for", 0),
        (1, "does", "c"),
        (0, "does", "d"),
        (0, "waits until", "1 did 2"),  # a, but not c
        (0, "does", "e"),
        (0, "waits until", "1 did 4"),
    ]


@pytest.mark.usefixtures("streams")
def test_what_the_work_reads_is_held_until_it_is_waited_for() -> None:
    x = torch.ones(3)
    alive = weakref.ref(x)
    join = Device("cuda", 0, "nccl").beside(0, lambda read: float(read.sum()), x)
    del x
    assert alive() is not None
    assert join() == 3
    assert alive() is None


def test_without_streams_the_work_is_done_at_once() -> None:
    done: list[int] = []
    join = open_device("cpu").beside(0, done.append, 1)
    assert done == [1]
    assert join() is None


@pytest.mark.usefixtures("streams")
def test_operators_that_wait_for_the_device_are_not_parted() -> None:
    seen: list[int] = []
    Branches(Operators(), Device("cuda", 0, "nccl")).beside(
        lambda: seen.append(torch.cuda.current_stream().cuda_stream)
    )
    assert seen == [0]


class Edge(ctypes.Structure):
    """CUgraphEdgeData."""

    _fields_ = (("ports", ctypes.c_ubyte * 2), ("type", ctypes.c_ubyte), ("reserved", ctypes.c_ubyte * 5))


def edges_of(graph: torch.cuda.CUDAGraph) -> list[tuple[int, int, bool]]:
    """(from, to, whether `to` may start early) by the order of nodes, as the driver tells it."""
    driver, recorded, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(graph.raw_cuda_graph()), ctypes.c_size_t()
    assert driver.cuGraphGetNodes(recorded, None, ctypes.byref(count)) == 0
    nodes = (ctypes.c_void_p * count.value)()
    assert driver.cuGraphGetNodes(recorded, nodes, ctypes.byref(count)) == 0
    assert driver.cuGraphGetEdges_v2(recorded, None, None, None, ctypes.byref(count)) == 0
    ends, data = [(ctypes.c_void_p * count.value)() for _ in range(2)], (Edge * count.value)()
    assert driver.cuGraphGetEdges_v2(recorded, *ends, data, ctypes.byref(count)) == 0
    number = {node: n for n, node in enumerate(nodes)}
    return sorted((number[a], number[b], edge.type == 1) for a, b, edge in zip(*ends, data, strict=True))


@pytest.mark.gpu
def test_recorded_where_streams_meet_all_edges_are_full() -> None:
    """What the argument in `early_launch` rests on: no dependency is lost, and none but within a stream is early."""
    if not early_launch.EARLY.value:
        pytest.skip("needs early launches: compute capability 9.0")
    parts = torch.randn(2, 3, 512, device="cuda")
    branches = Branches(TritonOperators(), open_device("cuda"))

    def kernel() -> None:
        TritonOperators.round_parts(parts, torch.float32, False)

    def work() -> None:
        kernel()
        beside, short = branches.beside(kernel), branches.beside(kernel, lane=1)
        kernel()
        beside()
        short()
        kernel()
        kernel()

    work()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        work()
    parted, met = [(0, 1, False), (0, 2, False), (0, 3, True)], [(1, 4, False), (2, 4, False), (3, 4, False)]
    assert edges_of(graph) == [*parted, *met, (4, 5, True)]


def test_kernels_that_depend_on_two_streams_do_not_start_early(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_launch, "EARLY", SimpleNamespace(value=True))
    ops = Operators()
    monkeypatch.setattr(ops, "captured", True, raising=False)
    monkeypatch.setattr(ops, "start_after_all", early_launch.start_after_all, raising=False)
    early: list[tuple[int, bool]] = []

    def kernel() -> None:
        early.append((streams.current.cuda_stream, early_launch._may_start_early()))

    def two_kernels() -> None:
        kernel()
        kernel()

    kernel()
    join = Branches(ops, Device("cuda", 0, "nccl")).beside(two_kernels)
    two_kernels()
    join()
    two_kernels()
    assert early == [(0, True), (1, False), (1, True), (0, True), (0, True), (0, False), (0, True)]


def test_who_waited_for_a_later_work_waits_for_nothing(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = Operators()
    monkeypatch.setattr(ops, "captured", True, raising=False)
    branches = Branches(ops, Device("cuda", 0, "nccl"))
    first, second = branches.beside(streams.kernel, "a"), branches.beside(streams.kernel, "b")
    assert second() == "b"
    waits = len(streams.log)
    assert (first(), second()) == ("a", "b")
    assert len(streams.log) == waits
    assert branches.beside(streams.kernel, "c")() == "c"
    assert streams.log[-1] == (0, "waits until", "1 did 6")


def test_works_of_another_lane_are_waited_for_along(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = Operators()
    monkeypatch.setattr(ops, "captured", True, raising=False)
    branches = Branches(ops, Device("cuda", 0, "nccl"))
    other = branches.beside(streams.kernel, "a", lane=1)
    first = branches.beside(streams.kernel, "b")
    later = branches.beside(streams.kernel, "c")
    assert first() == "b"
    waits = [entry for entry in streams.log if entry[1] == "waits until"]
    assert waits == [(0, "waits until", "2 did 2"), (0, "waits until", "1 did 2")]
    assert (other(), later()) == ("a", "c")
    assert [entry for entry in streams.log if entry[1] == "waits until"][2:] == [(0, "waits until", "2 did 4")]


@pytest.mark.gpu
def test_recorded_with_memory_that_is_freed_meanwhile() -> None:
    """Each stream frees and takes tensors of one size while the other reads: a block given out too early would show."""
    device = open_device("cuda")
    start, out = torch.zeros(1 << 20, device="cuda"), torch.zeros(1 << 20, device="cuda")

    def slow_sum(x: Tensor, n: int) -> Tensor:
        for _ in range(50):
            x = x.sin().asin()  # |x| <= 1.5: as it was
        return x + n

    def work() -> None:
        total = torch.zeros_like(start)
        for n in range(8):
            x = start + 0.1 * n
            join = device.beside(n % 2, slow_sum, x, n)
            del x
            noise = [start + 1e6 for _ in range(3)]
            del noise
            total = total + join()
        out.copy_(total)

    replay = device.capture(work)
    for base in (0.0, 0.5):
        start.fill_(base)
        out.zero_()
        replay()
        device.synchronize()
        expected = sum(base + 1.1 * n for n in range(8))
        assert (out - expected).abs().max() <= 1e-2
