"""Whether decoding is captured is said, with the reason where it is not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from flagrelease.device import Device
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.stepper import describe_steps


def model(device: Device, *, captured: bool = True, mp: int = 1) -> SimpleNamespace:
    """As far as it is asked."""
    ops = type("Fused", (Operators,), {"name": "fused", "captured": captured})()
    return SimpleNamespace(groups=SimpleNamespace(mp=mp), device=device, ops=ops)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(CUDAGraph=object))
    return Device("cuda", 0, "nccl")


def test_captured(card: Device) -> None:
    assert describe_steps(model(card)) == "captured: CUDAGraph"
    assert describe_steps(model(card, mp=2)) == "captured: CUDAGraph"
    assert describe_steps(model(replace(card, dist_backend="mccl"))) == "captured: CUDAGraph"


def test_eager_for_a_reason(card: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_steps(model(card, captured=False)) == "eager: fused operators wait for the device"
    other = replace(card, dist_backend="mccl")
    assert describe_steps(model(other, mp=2)) == "eager: no graph is known to hold the collectives of mccl"
    monkeypatch.delattr(torch.cuda, "CUDAGraph")
    assert describe_steps(model(card)) == "eager: torch.cuda has no CUDAGraph in this version"
    assert describe_steps(model(Device("cpu", 0, "gloo"))) == "eager: a CPU queues nothing"
