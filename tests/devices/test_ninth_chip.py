"""A ninth chip is a row: with the example's in the table, all that goes by the table finds the chip and its device."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch_standins import KINDS, RECORDS, StandIn, installed, use
from vendors import Vendor, furnish

from flagrelease.chips.table import get_chip, load_chips
from flagrelease.cli import main
from flagrelease.device import open_device
from flagrelease.doctor.examine import examine
from flagrelease.errors import ResourceError
from flagrelease.records.recipe import read_recipe

EXAMPLE = Path(__file__).parents[2] / "examples/ninth-chip"


@pytest.mark.usefixtures("nine")
def test_the_row_is_one_of_the_table() -> None:
    assert list(load_chips())[-1] == "acme"
    assert len(load_chips()) == 9
    assert (get_chip("acme").torch_device, get_chip("acme").memory_gib) == ("acme", 96)
    recipe = read_recipe(EXAMPLE / "recipe.yaml")
    assert [one.spec.name for one in recipe.chosen(["acme"])] == ["bf16-hf"]


@pytest.mark.usefixtures("nine")
def test_its_device_is_opened_by_the_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.acme`, with the calls of the list, is all that has to be there for recording, streams and memory."""
    with pytest.raises(ResourceError, match="'acme' needs the module torch_acme, which is not installed"):
        open_device("acme")
    record = {**next(one for one in RECORDS if one["package"] == "torch_npu"), "package": "torch_acme"}
    record["names"] = {name.replace("NPU", "ACME"): one for name, one in record["names"].items()}
    monkeypatch.setitem(KINDS, "torch_acme", "acme")
    for _ in installed(StandIn(record), record, monkeypatch):
        assert use("acme") == ["captured"] * 3 + ["alone"] * 3 + ["beside 3"]
        device = open_device("acme", 1)
        assert (device.torch_device, device.dist_backend) == ("acme:1", "accl")
        assert device.capturing == "captured: ACMEGraph"


@pytest.mark.usefixtures("nine")
def test_doctor_knows_it_by_its_tool_its_device_files_and_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chip of the table that `doctor/signs.yaml` has no line of ended every `flagrelease doctor` with a KeyError."""
    machine = Vendor(
        ("acme0", "acme1", "acmectl"), ("acme-smi", "Driver Version: 1.0.7"),
        {"torch": "2.9.0+cpu", "torch-acme": "2.9.0"}, "acme", ("X1", 95), "1.0.7", 2, "torch_acme",
    )  # fmt: skip
    monkeypatch.setitem(sys.modules["vendors"].VENDORS, "acme", machine)
    found = examine(furnish(tmp_path, "acme").place(), None, tmp_path, online=False)
    (sighting,) = [one for one in found.sightings if one.hardware]
    assert (found.chip, sighting.chip, sighting.driver, sighting.cards) == ("acme", "acme", "1.0.7", 2)
    assert sighting.software == ("torch_acme 2.9.0",)
    assert (found.torch.kind, found.torch.module, found.torch.backend) == ("acme", "torch_acme", "accl")


@pytest.mark.usefixtures("nine")
def test_commands_show_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chips", "acme"]) == 0
    said = capsys.readouterr().out
    assert "acme: Acme X1 (96 GiB, 8 a node)" in said
    assert "`acme-smi`" in said
    assert not hasattr(torch, "acme")
