"""Whether decoding is captured is said, with the reason where it is not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from flagrelease.accelerator import NEEDED_TO_RECORD
from flagrelease.device import Device
from flagrelease.engine.decode.stepper import describe_steps
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.v4.model import Model
from flagrelease.engine.v41.model import V41Model


def model(
    device: Device,
    *,
    captured: bool = True,
    mp: int = 1,
    exchange: object = None,
    no_exchange: str = "",
    experts: tuple[tuple[str, bool], ...] = (("fp4", True),),
) -> Model:
    """As far as it is asked. `experts`: of each layer, the format, and whether the fast kernels read them."""
    ops = type("Fused", (Operators,), {"name": "fused", "captured": captured})()
    blocks = [
        SimpleNamespace(ffn=SimpleNamespace(experts=SimpleNamespace(format=fmt, arranged=arranged)))
        for fmt, arranged in experts
    ]
    built: Any = Model.__new__(Model)
    built.groups = SimpleNamespace(mp=mp, exchange=exchange, no_exchange=no_exchange)
    built.device, built.ops, built.blocks = device, ops, blocks
    return cast(Model, built)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(CUDAGraph=object, **dict.fromkeys(NEEDED_TO_RECORD)))
    return Device("cuda", 0, "nccl")


def test_captured(card: Device) -> None:
    assert describe_steps(model(card)) == "captured: CUDAGraph"
    inside = "captured: CUDAGraph; small sums over ranks inside kernels"
    assert describe_steps(model(card, mp=2, exchange=object())) == inside
    # Nobody asked for an exchange: it was told as if there were one.
    assert describe_steps(model(card, mp=2)) == "captured: CUDAGraph; sums by nccl"
    apart = "captured: CUDAGraph; sums by nccl: ranks on several hosts"
    assert describe_steps(model(card, mp=2, no_exchange="ranks on several hosts")) == apart
    assert describe_steps(model(replace(card, dist_backend="mccl"))) == "captured: CUDAGraph"


def test_experts_that_the_fast_kernels_do_not_read_are_told(card: Device) -> None:
    layers = (("fp4", True), ("fp4", False), ("plain", False), ("fp4", False))
    said = describe_steps(model(card, experts=layers))
    assert said == "captured: CUDAGraph; FP4 experts of 2 layers by slower kernels (docs/engine-internals.md)"


def test_steps_of_v41_are_told_to_be_plain(card: Device) -> None:
    built: Any = V41Model.__new__(V41Model)
    built.device = card
    assert describe_steps(built) == "eager: steps of DeepSeek-V4.1 are not captured"


def test_eager_for_a_reason(card: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_steps(model(card, captured=False)) == "eager: fused operators wait for the device"
    other = replace(card, dist_backend="mccl")
    assert describe_steps(model(other, mp=2)) == "eager: no graph is known to hold the collectives of mccl"
    monkeypatch.delattr(torch.cuda, "CUDAGraph")
    assert describe_steps(model(card)) == "eager: torch.cuda has no CUDAGraph in this version"
    assert describe_steps(model(Device("cpu", 0, "gloo"))) == "eager: a CPU has no graphs"
