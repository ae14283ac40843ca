"""Every combination of `known.yaml` is planted and found, and not found where one of its conditions is taken away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from vendor_environment import plant
from vendors import Machine

from flagrelease.doctor.known import Circumstances, found_here, load_known, parse_known
from flagrelease.doctor.packages import Packages, satisfies

Planting = tuple[dict[str, str], dict[str, str], tuple[str, ...], tuple[str, ...]]
# id -> (packages with it, packages without it, chips, modules that cannot be imported)
PLANTED: dict[str, Planting] = {
    "torch-npu-without-cann": ({"torch-npu": "2.13.0"}, {"torch": "2.13.0"}, (), ()),
    "torch-does-not-import": ({"torch": "2.9.0+musa"}, {}, (), ("torch",)),
    "flagtree-mthreads-flash-attention": ({"flagtree": "0.6.0+mthreads3.6"}, {"flagtree": "0.6.0+ascend3.5"}, (), ()),
    "flagtree-iluvatar-plugin": ({"flagtree": "0.5.0+iluvatar3.1"}, {"triton": "3.1.0"}, ("iluvatar",), ()),
    "triton-ascend-without-pybind11": (
        {"triton-ascend": "3.2.0"}, {"triton-ascend": "3.2.0", "pybind11": "3.0.1"}, (), (),
    ),
    "flag-gems-few-heads": ({"flag-gems": "5.0.2"}, {"flag-gems": "5.3.3"}, (), ()),
    "flag-gems-hadamard": (
        {"flag-gems": "5.0.2", "triton": "3.1.0+corex.4.4.0"}, {"flag-gems": "5.0.2", "triton": "3.6.0"}, (), (),
    ),
    "numpy-2-beside-a-torch-for-numpy-1": ({"numpy": "2.3.5"}, {"numpy": "1.26.4"}, ("hygon",), ()),
    "vllm-dspark-drafts": ({"vllm": "0.27.1"}, {"vllm": "0.28.0"}, (), ()),
    "vllm-needs-scale-fmt": ({"vllm": "0.21.0"}, {"vllm": "0.22.0"}, (), ()),
    "vllm-reads-e8m0-as-bytes": ({"vllm": "0.33.0"}, {"vllm": "0.34.0"}, (), ()),
    "modelscope-pipeline": (
        {"modelscope": "1.40.2", "transformers": "5.23.0"}, {"modelscope": "1.40.2", "transformers": "4.57.0"}, (), (),
    ),
    "model-signing-without-pyopenssl": (
        {"model-signing": "1.1.1"}, {"model-signing": "1.1.1", "pyOpenSSL": "26.4.0"}, (), (),
    ),
}  # fmt: skip


def ids(machine: Machine, chips: tuple[str, ...] = (), failed: tuple[str, ...] = ()) -> set[str]:
    place = machine.place()
    return {one.id for one in found_here(Circumstances(place, Packages(place), chips, failed))}


@pytest.mark.parametrize("name", PLANTED)
def test_it_is_found_and_only_there(name: str, tmp_path: Path) -> None:
    present, without, chips, failed = PLANTED[name]
    planted, sound = Machine(tmp_path / "planted"), Machine(tmp_path / "sound")
    for machine, packages in ((planted, present), (sound, without)):
        machine.folder.mkdir()
        machine.install(packages)
    assert name in ids(planted, chips, failed)
    assert name not in ids(sound, chips, failed)
    if chips:
        assert name not in ids(planted, ("nvidia",), failed)
    if failed:
        assert name not in ids(planted, chips)


def test_two_owners_of_triton(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    plant(machine.packages, "triton", "3.5.0", {"triton/__init__.py": "a = 1\n"})
    assert "triton-has-several-owners" not in ids(machine)
    plant(machine.packages, "triton-ascend", "3.2.1", {"triton/__init__.py": "a = 2\n"})
    assert "triton-has-several-owners" in ids(machine)


def test_torch_twice_in_one_folder_but_not_one_folder_behind_another(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    plant(machine.packages, "torch", "2.9.0+metax3.7")
    assert "torch-is-there-twice" not in ids(machine)
    plant(tmp_path / "behind", "torch", "2.13.0")
    place = machine.place()
    first = str(machine.packages)  # named twice on the path, which is no second torch
    layered = type(place)(place.root, (first, first, str(tmp_path / "behind")), place.environment)
    assert not Packages(layered).has_twice("torch")
    plant(machine.packages, "torch", "2.13.0")
    assert "torch-is-there-twice" in ids(machine)


def test_what_an_interrupted_pip_left_is_no_package(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    plant(machine.packages, "torch", "2.9.0+metax3.7")
    plant(machine.packages, "torch", "2.8.0")
    (machine.packages / "torch-2.8.0.dist-info").rename(machine.packages / "~orch-2.8.0.dist-info")
    (machine.packages / "vllm-0.27.1.dist-info").mkdir()
    (machine.packages / "flag_gems-5.0.2.egg-info").write_text(
        "Metadata-Version: 1.0\nName: flag-gems\nVersion: 5.0.2\n"
    )
    assert ids(machine) == {"flag-gems-few-heads"}
    assert Packages(machine.place()).versions(["torch", "vllm"]) == {"torch": "2.9.0+metax3.7"}


def test_broken_records_of_packages_do_not_end_doctor(tmp_path: Path) -> None:
    """Each would end it with a traceback: bytes that are no text, no version, a loop of links, markers of nobody."""
    machine = Machine(tmp_path)
    plant(machine.packages, "flagtree", "0.6.0+mthreads3.6", {"triton/a.py": ""})
    plant(machine.packages, "triton", "3.6.0", {"triton/a.py": ""}, ['x; phase_of_the_moon == "new"', "y (((", "z>1"])
    (machine.packages / "flagtree-0.6.0+mthreads3.6.dist-info" / "RECORD").write_bytes(b"triton/a.py,sha256=\xff,1\n")
    for name in ("torch-2.9.0", "sglang-0.5", "vllm-0.33.0"):
        (machine.packages / f"{name}.dist-info").mkdir()
    (machine.packages / "torch-2.9.0.dist-info" / "METADATA").write_bytes(b"\xff\xfe\0N")
    (machine.packages / "sglang-0.5.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\n")
    (machine.packages / "vllm-0.33.0.dist-info" / "METADATA").symlink_to("METADATA")
    packages = Packages(machine.place())
    assert packages.versions(["torch", "sglang", "vllm", "triton"]) == {"triton": "3.6.0"}
    assert [owner.name for owner in packages.owners_of_triton] == ["triton"]
    assert packages.unmet(["triton"]) == ["triton 3.6.0 requires z>1, which is not installed"]


def test_cann_settles_torch_npu(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.install({"torch-npu": "2.9.0"})
    assert "torch-npu-without-cann" in ids(machine)
    (tmp_path / "usr/local/Ascend/ascend-toolkit").mkdir(parents=True)
    assert "torch-npu-without-cann" not in ids(machine)


def test_no_row_is_untested() -> None:
    named = {"triton-has-several-owners", "torch-is-there-twice", *PLANTED}
    assert {row.id for row in load_known()[1]} == named


def test_worst_comes_first(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.install({"vllm": "0.27.1", "triton-ascend": "3.2.0", "numpy": "2.0.0"})
    place = machine.place()
    found = found_here(Circumstances(place, Packages(place), ("hygon",), ()))
    order = ["wrong", "broken", "risk"]
    assert [one.severity for one in found] == sorted((one.severity for one in found), key=order.index)
    assert {one.severity for one in found} == set(order)


@pytest.mark.parametrize(
    ("version", "specifier", "holds"),
    [
        ("0.6.0+mthreads3.6", "==0.6.0", True), ("2.10.0+metax3.8.1.0", ">=2.6", True), ("2.5.1+musa", ">=2.6", False),
        ("0.26.0rc1", "<0.27", True), ("0.27.0rc1", ">=0.26", True), ("not a version", ">=9", True),
    ],
)  # fmt: skip
def test_versions_of_vendors_are_compared_without_their_local_part(version: str, specifier: str, holds: bool) -> None:
    assert satisfies(version, specifier) is holds


ROW = """
sources: {{s: somewhere}}
known:
  - {{id: a, when: {when}, severity: risk, consequence: c, remedy: r, mark: stated, sources: [{source}]}}
"""


@pytest.mark.parametrize(
    ("when", "source", "said"),
    [
        ("{}", "s", "no condition"),
        ("{chips: [abacus]}", "s", "not in the chip table"),
        ("{owners: 2}", "t", "cited but not listed"),
        ("{colour: red}", "s", "Extra inputs"),
    ],
)
def test_a_row_that_is_wrong_is_refused(when: str, source: str, said: str) -> None:
    read: Callable[[str], object] = parse_known
    with pytest.raises(ValueError, match=said):
        read(ROW.format(when=when, source=source))
