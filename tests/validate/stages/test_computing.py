"""Whose device computed the figures: the chip's own, or one that only looks like it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from flagrelease.chips.table import get_chip
from flagrelease.device import Device
from flagrelease.records.computed_on import ByEngine, ByServer, on_the_chip, say_computed_on
from flagrelease.records.report import Stage
from flagrelease.records.rules import StageName
from flagrelease.validate.stages.computing import computer, computers
from flagrelease.validate.stages.stage import Outcome


@dataclass(frozen=True, slots=True)
class NamedDevice(Device):
    """A device that is not here."""

    called: str = ""

    @property
    def name(self) -> str:
        return self.called


def of(kind: str, name: str, chip: str) -> ByEngine:
    found = computer("logits", get_chip(chip), NamedDevice(kind, 0, "nccl", name), None)
    assert isinstance(found, ByEngine)
    return found


@pytest.mark.parametrize(
    ("kind", "name", "chip", "own"),
    [
        ("cuda", "NVIDIA H200", "nvidia", True),
        ("cuda", "NVIDIA H200", "hygon", False),  # Hygon's torch answers as cuda, too
        ("cuda", "BW1000", "hygon", True),
        ("musa", "MTT S5000", "mthreads", True),
        ("npu", "Ascend910B", "mthreads", False),
        ("cpu", "x86_64", "ascend", False),
    ],
)
def test_a_device_of_another_vendor_is_not_the_chips_own(kind: str, name: str, chip: str, own: bool) -> None:
    found = of(kind, name, chip)
    assert found.chips_own is own
    assert ("proves the tool, not the chip" in str(found)) is not own
    assert on_the_chip((found,)) is own


def test_files_are_read_by_nobody_in_particular() -> None:
    assert computer("weights", get_chip("ascend"), "no device", None) is None
    assert say_computed_on(()) == "no figure of the model was computed: only files were read"
    assert not on_the_chip(())


def test_each_computer_is_named_once_with_its_stages() -> None:
    def outcome(name: StageName, by: ByEngine | ByServer | None) -> Outcome:
        stage = Stage(name=name, verdict="pass", detail="d")
        return Outcome(stage=stage, inputs={}, computed_on=by)

    cpu = of("cpu", "x86_64", "ascend")
    server = ByServer(stages=("benchmarks",), address="http://h/v1", model="m")
    found = computers(
        [
            outcome("weights", None), outcome("logits", cpu), outcome("benchmarks", server),
            outcome("behaviour", cpu.model_copy(update={"stages": ("behaviour",)})),
        ]
    )  # fmt: skip
    assert [each.stages for each in found] == [("logits", "behaviour"), ("benchmarks",)]
    said = say_computed_on(found)
    assert said.startswith("logits, behaviour: computed on ")
    assert "benchmarks: answered by the server at http://h/v1, which does not say what it is" in said
