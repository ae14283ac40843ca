"""The device seam, on a machine without accelerators and with modules that pretend."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from flagrelease.device import Device, open_device
from flagrelease.errors import ResourceError, UsageError


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture
def musa(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A torch_musa with two cards; returns the calls made."""
    calls: list[object] = []
    fake = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        set_device=lambda index: calls.append(("set_device", index)),
        synchronize=lambda index: calls.append(("synchronize", index)),
        mem_get_info=lambda index: (10 + index, 100),
    )
    monkeypatch.setitem(sys.modules, "torch_musa", ModuleType("torch_musa"))
    monkeypatch.setattr(torch, "musa", fake, raising=False)
    return calls


def test_cpu() -> None:
    device = open_device("cpu")
    assert (device.torch_device, device.dist_backend) == ("cpu", "gloo")
    free, total = device.memory()
    assert 0 < free <= total
    device.synchronize()
    device.set_current()


@pytest.mark.usefixtures("no_cuda")
def test_auto_is_the_cpu_where_nothing_else_is() -> None:
    assert open_device("auto").type == "cpu"


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize(
    ("name", "said"),
    [("cuda", "torch shows 0 cuda devices"), ("mthreads", "torch_musa shows 0 musa"), ("ascend", "torch_npu shows 0")],
)
def test_what_is_not_there(name: str, said: str) -> None:
    with pytest.raises(ResourceError, match=said):
        open_device(name)


def test_no_such_name() -> None:
    with pytest.raises(UsageError, match="none of auto, cpu, cuda, musa, npu, nor a chip"):
        open_device("tpu")


@pytest.mark.usefixtures("no_cuda")
def test_a_chip_is_its_device_with_its_backend(musa: list[object]) -> None:
    for name in ("mthreads", "moore", "musa", "auto"):
        assert open_device(name, 1) == Device("musa", 1, "mccl")
    device = open_device("musa", 1)
    assert device.torch_device == "musa:1"
    device.set_current()
    device.synchronize()
    assert musa == [("set_device", 1), ("synchronize", 1)]
    assert device.memory() == (11, 100)
    with pytest.raises(ResourceError, match="index 2: torch_musa shows 2 musa devices"):
        open_device("musa", 2)
