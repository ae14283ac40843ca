"""Each vendor's machine is recognised, and what it can do is said in words that arithmetic by hand gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from vendor_environment import plant
from vendors import ENGINE, SERVE, VENDORS, Machine, furnish, torch_lines

from flagrelease.chips.table import get_chip
from flagrelease.cli import main
from flagrelease.doctor.display import show_diagnosis
from flagrelease.doctor.examine import Diagnosis, examine


def look(machine: Machine, asked: str | None = None) -> Diagnosis:
    return examine(machine.place(), None if asked is None else get_chip(asked), machine.folder, online=False)


def can(found: Diagnosis, what: str) -> tuple[str, str]:
    one = next(one for one in found.abilities if one.what == what)
    return one.can, one.why


@pytest.mark.parametrize("chip", VENDORS)
def test_a_vendors_machine_is_recognised(chip: str, tmp_path: Path) -> None:
    vendor = VENDORS[chip]
    found = look(furnish(tmp_path, chip))
    assert found.chip == chip
    (sighting,) = [one for one in found.sightings if one.hardware]
    assert (sighting.chip, sighting.driver, sighting.cards) == (chip, vendor.driver, vendor.numbered)
    assert sighting.tool == "answers"
    assert any(vendor.tool[0] in sign for sign in sighting.hardware)
    assert sighting.software, "its torch, or its own distribution"
    assert found.torch.kind == vendor.kind
    assert found.torch.module == vendor.module
    assert (len(found.torch.devices), found.torch.failed_at) == (8, None)
    assert vendor.packages.items() <= (found.packages | {"pybind11": "3.0.1"}).items()
    for what in ("convert", "verify", "run bf16", "serve"):
        assert can(found, what)[0] in ("yes", "partly")


@pytest.mark.parametrize(
    ("chip", "bf16", "fp8", "int8"),
    [  # 673 GB, 306 GB and 308 GB against 8 cards, of whose memory 90 % holds weights, in powers of two
        ("nvidia", ("yes", "on 8 ranks"), ("yes", "on 4 ranks"), ("yes", "on 4 ranks")),
        (
            "ascend",
            ("partly", "needs 16 ranks"),
            ("partly", "no FP8 in hardware (chip table): the engine emulates it exactly, slowly"),
            ("yes", "on 8 ranks"),
        ),
        ("mthreads", ("partly", "needs 16 ranks"), ("yes", "on 4 ranks"), ("yes", "on 4 ranks")),
        (
            "iluvatar",
            ("partly", "needs 16 ranks"),
            ("partly", "no FP8 in hardware (chip table): the engine emulates it exactly, slowly"),
            ("yes", "on 8 ranks"),
        ),
    ],
)
def test_on_how_many_ranks_each_kind_of_numbers_runs(
    chip: str, bf16: tuple[str, str], fp8: tuple[str, str], int8: tuple[str, str], tmp_path: Path
) -> None:
    found = look(furnish(tmp_path, chip))
    for numbers, (verdict, words) in (("bf16", bf16), ("fp8", fp8), ("int8", int8)):
        said = can(found, f"run {numbers}")
        assert said[0] == verdict, said
        assert words in said[1]


def test_an_older_nvidia_has_no_fp8(tmp_path: Path) -> None:
    machine = furnish(tmp_path, "nvidia")
    for line in machine.torch:
        if "device" in line:
            line["device"]["capability"] = [8, 0]
    why = "; compute capability 8.0 has no FP8, which begins with 8.9: the engine emulates it exactly, slowly"
    for what in ("run fp8", "run fp8-mp8 (made for flagos)"):
        verdict, said = can(look(machine), what)
        assert (verdict, said[-len(why) :]) == ("partly", why)
    assert can(look(machine), "run fp8-hf (made for vllm)")[0] == "yes", "vLLM is installed and has ways of its own"


def test_other_vendors_numbers_are_no_compute_capabilities(tmp_path: Path) -> None:
    """Hygon's torch is AMD's, which says 9.4 of gfx942; MetaX' says 8.0 of a chip that is no A100."""
    for chip in ("hygon", "metax"):
        machine = furnish(tmp_path / chip, chip)
        for line in machine.torch:
            if "device" in line:
                line["device"]["capability"] = [8, 0]
        assert "compute capability" not in can(look(machine), "run fp8")[1]


def test_a_release_that_is_cut_for_larger_cards_does_not_run(tmp_path: Path) -> None:
    """Some tables count a BI-V150 as two devices of 32 GiB; a rank of bf16-mp16 is 42 GB."""
    machine = furnish(tmp_path, "iluvatar", devices=16)
    for line in machine.torch:
        if "device" in line:
            line["device"]["bytes"] = 32 << 30
    found = look(machine, "iluvatar")
    assert found.possible is False
    assert can(found, "run bf16-mp16 (made for flagos)")[1].startswith(
        "a rank's weights, 42 GB, do not fit a device of 32"
    )
    assert can(found, "run int8") == ("yes", "DeepSeek-V4-Flash-0731 (308 GB) on 16 ranks of 16 devices of 32 GiB")


def test_whole_tensors_are_cut_for_the_devices_that_are_here(tmp_path: Path) -> None:
    machine = furnish(tmp_path, "nvidia", devices=2)
    for line in machine.torch:
        if "device" in line:
            line["device"]["bytes"] = 180 << 30  # 306 GB in 90 % of twice as much
    assert can(look(machine), "run fp8-hf (made for vllm)") == ("yes", "V4-Flash on 2 of 2 devices, by vLLM")


def test_a_stack_takes_as_many_cards_as_its_own_command(tmp_path: Path) -> None:
    """vllm-musa is started on 8 cards, though the memory of 4 would do, which is what the engine takes."""
    machine = furnish(tmp_path, "mthreads", devices=4)
    what = "run fp8-hf (made for vllm-musa)"
    assert can(look(machine), what)[0] == "yes", "by the engine"
    machine.install({"vllm": "0.28.0", "vllm-musa": "0.28.0"})
    assert can(look(machine), what) == ("partly", "V4-Flash needs 8 cards: 2 machines like this one")


def test_a_wrapped_nvidia_smi_is_not_nvidia(tmp_path: Path) -> None:
    machine = furnish(tmp_path, "zhenwu")
    machine.tool("nvidia-smi", "| NVIDIA-SMI 999  Driver Version: 2.0 |")
    found = look(machine)
    assert (found.chip, [one.chip for one in found.sightings]) == ("zhenwu", ["zhenwu"])


def test_two_chips_in_one_machine_are_for_the_user_to_choose(tmp_path: Path) -> None:
    machine = furnish(tmp_path, "nvidia")
    machine.node("iluvatar0")
    found = look(machine)
    assert found.chip is None
    assert {one.chip for one in found.sightings} == {"nvidia", "iluvatar"}
    assert look(machine, "nvidia").possible is True


@pytest.mark.parametrize("how", ["fails", "is torn"])
def test_a_tool_that_fails_alone_is_told_of_and_is_no_chip(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the driver is not loaded, or the tool is of another processor."""
    machine = Machine(tmp_path)
    machine.tool("mthreads-gmi", "no driver", 9)
    if how == "is torn":
        (tmp_path / "bin" / "mthreads-gmi").write_bytes(b"\x7fELF torn")
    found = look(machine)
    assert (found.chip, [one.chip for one in found.sightings]) == (None, ["mthreads"])
    show_diagnosis(found)
    said = "ended with exit code 9" if how == "fails" else "cannot be started (Exec format error)"
    told = capsys.readouterr().out
    assert f"mthreads: its tool {said}, and nothing else of it is here" in told
    assert "more than one" not in told


def test_without_a_chip_small_models_run_on_the_cpu(tmp_path: Path) -> None:
    machine = Machine(tmp_path, torch_lines(VENDORS["nvidia"], 0))
    machine.install(ENGINE | SERVE | {"torch": "2.13.0+cpu"})
    found = look(machine)
    assert (found.chip, found.sightings, found.possible) == (None, (), None)
    assert can(found, "run bf16") == ("partly", "torch shows no cuda device: small models on the CPU only")


@pytest.mark.parametrize(
    ("without", "what", "install"),
    [
        ("tokenizers", "run bf16", "pip install '.[chip]'"),
        ("uvicorn", "serve", "pip install '.[serve]'"),
        ("torch", "run fp8", "the vendor's image or wheel of torch"),
        ("numba", "convert", "pip install ."),
        ("nothing", "publish", "pip install '.[publish]'"),
    ],
)
def test_what_is_missing_comes_with_what_to_install(without: str, what: str, install: str, tmp_path: Path) -> None:
    machine = furnish(tmp_path, "mthreads")
    for path in machine.packages.glob(f"{without}-*.dist-info"):
        (path / "METADATA").unlink()
        path.rename(path.with_suffix(".gone"))
    found = look(machine)
    one = next(one for one in found.abilities if one.what == what)
    assert one.can != "yes"
    assert one.install == (install,)


def test_a_vendors_torch_that_does_not_load_is_said_with_its_words(tmp_path: Path) -> None:
    machine = Machine(tmp_path, [{"step": "import torch"}], code=1)
    machine.install(ENGINE | dict(VENDORS["ascend"].packages))
    found = look(machine)
    assert (found.torch.failed_at, found.torch.failed_imports) == ("import torch", ("torch",))
    assert "libvendor.so: cannot open" in (found.torch.failure or "")
    assert can(found, "run bf16")[0] == "no"
    assert {"torch-does-not-import", "torch-npu-without-cann"} <= {one.id for one in found.known}


@pytest.mark.parametrize("chip", VENDORS)
def test_the_chips_own_machine_can_run_its_releases_and_another_cannot(chip: str, tmp_path: Path) -> None:
    machine = furnish(tmp_path, chip)
    assert look(machine, chip).possible is True
    other = "ascend" if chip != "ascend" else "nvidia"
    assert look(machine, other).possible is False


def test_a_stack_that_is_installed_serves_without_the_engine(tmp_path: Path) -> None:
    machine = furnish(tmp_path, "ascend")
    for path in machine.packages.glob("tokenizers-*.dist-info"):
        (path / "METADATA").unlink()
        path.rename(path.with_suffix(".gone"))
    found = look(machine, "ascend")
    assert found.possible is True
    assert can(found, "run w8a8-ascend-hf (made for vllm-ascend)")[0] == "yes"
    assert can(found, "run bf16-mp16 (made for flagos)") == ("no", "tokenizers missing")
    assert "vllm-ascend 0.26.0rc1" in can(found, "serve by vllm-ascend on A2 and A3")[1]


def test_who_owns_the_folder_triton(tmp_path: Path) -> None:
    machine = furnish(tmp_path, "mthreads")
    found = look(machine)
    assert [(one.name, one.said) for one in found.triton] == [("triton", "alone")]
    shared = {"triton/__init__.py": "flagtree = True\n", "triton/compiler.py": "flagtree = True\n"}
    plant(machine.packages, "flagtree", "0.6.0+mthreads3.6", shared)
    first, second = look(machine).triton
    assert (first.name, second.name) == ("flagtree", "triton")
    assert first.said == "shares 1 files with another; of 1 that were compared, 1 are as it installed them"
    assert second.said.endswith("0 are as it installed them")


def test_requirements_that_are_not_met_are_named(tmp_path: Path) -> None:
    machine = furnish(tmp_path, "metax")
    plant(machine.packages, "vllm", "0.33.0", requires=["torch==2.10.0", "numpy<2", "regex", "x; extra == 'audio'"])
    assert look(machine).unmet == (
        "vllm 0.33.0 requires numpy<2; 2.3.5 is installed",
        "vllm 0.33.0 requires regex, which is not installed",
    ), "2.10.0+metax3.8.1.0 is a torch 2.10.0"


def test_limits_of_a_container_count(tmp_path: Path) -> None:
    machine = furnish(tmp_path, "nvidia")
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("64000000000\n")
    (group / "memory.current").write_text("4000000000\n")
    (group / "cpu.max").write_text("50000 100000\n")
    found = look(machine).machine
    assert (found.memory, found.memory_free, found.cores) == (64_000_000_000, 60_000_000_000, 0.5)
    (group / "memory.max").write_text("max\n")
    (group / "cpu.max").write_text("max 100000\n")
    found = look(machine).machine
    assert (found.memory, found.memory_free) == (1_056_784_000 * 1024, 900_000_000 * 1024)
    assert found.cores >= 1


@pytest.mark.parametrize(("chip", "code"), [(None, 0), ("mthreads", 0), ("ascend", 4)])
def test_the_command_says_it_by_its_exit_code_too(
    chip: str | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = furnish(tmp_path, "mthreads")
    monkeypatch.setattr("flagrelease.doctor.place.Place", lambda: machine.place())
    words = ["doctor", *([] if chip is None else ["--chip", chip])]
    assert main([*words, "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["possible"] is (None if chip is None else code == 0)
    assert main(words) == code
    said = capsys.readouterr().out
    assert "mthreads: /dev/mtgpu.0 and 7 more" in said
    assert "driver 5.2.0-server" in said


def test_an_unknown_chip_is_bad_usage() -> None:
    assert main(["doctor", "--chip", "abacus"]) == 2


@pytest.mark.slow  # imports torch
def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["torch"]["version"] == told["packages"]["torch"]
    assert told["torch"]["failed_at"] is None
    assert told["machine"]["cores"] > 0
    assert {one["hub"] for one in told["logins"]} == {"hf", "modelscope"}
