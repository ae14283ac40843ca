"""The device seam, on a machine without accelerators and with modules that pretend."""

from __future__ import annotations

import gc
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flagrelease.chips.table import get_chip
from flagrelease.device import Device, _recorder, open_device
from flagrelease.errors import ResourceError, UsageError


def pretend(calls: list[object], count: int) -> SimpleNamespace:
    """A torch.<device> module with this many devices that writes down what is asked of it."""
    return SimpleNamespace(
        is_available=lambda: count > 0,
        device_count=lambda: count,
        set_device=lambda index: calls.append(("set_device", index)),
        synchronize=lambda index: calls.append(("synchronize", index)),
        mem_get_info=lambda index: (10 + index, 100),
        get_device_name=lambda index: f"card {index}",
    )


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, module: str, source: str = "") -> None:
    """An importable module of this name, for this test."""
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, module, sys)  # so that what the import leaves there is taken out again
    del sys.modules[module]


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture
def musa(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """A torch_musa with two cards, and no CUDA; returns the calls made."""
    calls: list[object] = []
    monkeypatch.setattr(torch, "cuda", pretend([], 0))
    monkeypatch.setattr(torch, "musa", pretend(calls, 2), raising=False)
    install(monkeypatch, tmp_path, "torch_musa")
    return calls


def test_cpu() -> None:
    device = open_device("cpu")
    assert (device.torch_device, device.dist_backend, device.name) == ("cpu", "gloo", platform.machine())
    free, total = device.memory()
    in_kib = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    assert total == in_kib["MemTotal"] * 1024
    assert 0 < free <= total
    device.synchronize()
    device.set_current()


@pytest.mark.usefixtures("no_cuda")
def test_auto_is_the_cpu_where_nothing_else_is() -> None:
    assert open_device("auto") == open_device("auto", 3) == Device("cpu", 0, "gloo")


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuda", r"'cuda': no index 0; torch\.cuda shows 0 devices"),
        ("hygon", r"'hygon': no index 0; torch\.cuda shows 0 devices"),
        ("mthreads", "'mthreads' needs the module torch_musa, which is not installed"),
        ("npu", "'npu' needs the module torch_npu, which is not installed"),
        ("huawei", "'huawei' needs the module torch_npu, which is not installed"),
    ],
)
def test_what_is_not_there(name: str, said: str) -> None:
    with pytest.raises(ResourceError, match=said):
        open_device(name)


def test_no_such_name() -> None:
    with pytest.raises(UsageError, match=r"'ascent' is none of auto, cpu, cuda, npu, musa; .*did you mean 'ascend'"):
        open_device("ascent")


def test_a_chip_is_its_device_with_its_backend(musa: list[object]) -> None:
    for name in ("mthreads", "moore", "musa", "auto"):
        assert open_device(name, 1) == Device("musa", 1, "mccl")
    device = open_device("musa", 1)
    assert (device.torch_device, device.name, device.memory()) == ("musa:1", "card 1", (11, 100))
    device.set_current()
    device.synchronize()
    assert musa == [("set_device", 1), ("synchronize", 1)]


@pytest.mark.usefixtures("musa")
@pytest.mark.parametrize("name", ["musa", "auto"])
def test_a_rank_too_many_does_not_end_up_elsewhere(name: str) -> None:
    with pytest.raises(ResourceError, match=r"no index 2; torch\.musa shows 2 devices"):
        open_device(name, 2)


@pytest.mark.parametrize(
    ("count_cuda", "count_npu", "chosen"),
    [(8, 8, ("cuda", "nccl")), (0, 8, ("npu", "hccl")), (0, 0, ("cpu", "gloo"))],
)
def test_auto_takes_the_first_that_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count_cuda: int, count_npu: int, chosen: tuple[str, str]
) -> None:
    monkeypatch.setattr(torch, "cuda", pretend([], count_cuda))
    monkeypatch.setattr(torch, "npu", pretend([], count_npu), raising=False)
    install(monkeypatch, tmp_path, "torch_npu")
    device = open_device("auto")
    assert (device.type, device.dist_backend) == chosen


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize("name", ["npu", "auto"])
def test_a_broken_module_is_not_an_absent_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    install(monkeypatch, tmp_path, "torch_npu", "raise ImportError('libascendcl.so: cannot open shared object file')")
    with pytest.raises(ResourceError, match=r"torch_npu is installed but does not load: libascendcl\.so"):
        open_device(name)


@pytest.fixture
def own_streams() -> Iterator[None]:
    """A device's streams are made once in a process: those of a stand-in are not to stay."""
    _recorder.cache_clear()
    yield
    _recorder.cache_clear()


class Graphs(SimpleNamespace):
    """A torch module with graphs of this name, as far as recording goes; says when it records."""

    def __init__(self, name: str) -> None:
        super().__init__(recording=False, replays=0)
        setattr(self, name, lambda: SimpleNamespace(replay=self.replay))
        self.Stream = self.current_stream = lambda *index: SimpleNamespace(wait_stream=lambda other: None)

    def replay(self) -> None:
        self.replays += 1

    def stream(self, beside: object) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def graph(self, graph: object, pool: object) -> Iterator[None]:
        self.recording = True
        yield
        self.recording = False


@pytest.mark.usefixtures("own_streams")
@pytest.mark.parametrize(
    ("kind", "module", "name"),
    [("cuda", None, "CUDAGraph"), ("npu", "torch_npu", "NPUGraph"), ("musa", "torch_musa", "MUSAGraph")],
)
def test_work_is_recorded_by_what_the_device_calls_a_graph(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, module: str | None, name: str
) -> None:
    if module is not None:
        install(monkeypatch, tmp_path, module)
    graphs = Graphs(name)
    monkeypatch.setattr(torch, kind, graphs, raising=False)
    device = Device(kind, 0, "any")
    assert (device.graph_class, device.why_eager) == (name, None)
    runs: list[bool] = []
    replay = device.capture(lambda: runs.append(graphs.recording))
    assert runs == [False, False, True]
    replay()
    assert (len(runs), graphs.replays) == (3, 1)


def test_what_cannot_be_recorded_says_why(monkeypatch: pytest.MonkeyPatch, musa: list[object]) -> None:
    def work() -> None:
        raise AssertionError("nothing is run that is not recorded")

    old = Device("musa", 0, "mccl")
    assert old.why_eager == "torch.musa has no MUSAGraph in this version"
    assert Device("cpu", 0, "gloo").why_eager == "a CPU has no graphs"
    assert all(device.capture(work) is work for device in (old, Device("cpu", 0, "gloo")))
    bare = get_chip("mthreads").model_copy(update={"graph_class": None, "why_null": {"graph_class": "unknown: new"}})
    monkeypatch.setattr("flagrelease.device.load_chips", lambda: {"bare": bare})
    assert old.why_eager == "no graphs of torch.musa are known: unknown: new"


@pytest.mark.usefixtures("own_streams")
def test_no_garbage_is_collected_while_a_graph_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier graph that dies then breaks the recording: seen on an H200, where each document had a graph."""
    graphs = Graphs("CUDAGraph")
    monkeypatch.setattr(torch, "cuda", graphs)
    seen = []
    Device("cuda", 0, "nccl").capture(lambda: seen.append((graphs.recording, gc.isenabled())))
    assert seen == [(False, True), (False, True), (True, False)]
    assert gc.isenabled()
