"""The chip table: complete, strict, and what the fact sheet says."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from flagrelease.chips.table import Chip, get_chip, load_chips, parse_chips
from flagrelease.errors import UsageError

TEXT = resources.files("flagrelease.chips").joinpath("chips.yaml").read_text(encoding="utf-8")
HARBOR = "harbor.baai.ac.cn/flagrelease-public/"

# Written from the fact sheet (section 4.1), not from chips.yaml:
# device, module, backend, variable of a process and of a container, tool, GiB a card, cards a node, FP8, released as.
FACTS = {
    "nvidia": (
        "cuda", None, "nccl", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "nvidia-smi", 96, 8, True, "fp8",
    ),
    "ascend": (
        "npu", "torch_npu", "hccl", "ASCEND_RT_VISIBLE_DEVICES", "ASCEND_VISIBLE_DEVICES", "npu-smi info", 64, 8, False,
        "bf16",
    ),
    "hygon": ("cuda", None, "nccl", "HIP_VISIBLE_DEVICES", "DCU_VISIBLE_DEVICES", "hy-smi", 64, 8, None, "bf16"),
    "metax": ("cuda", None, "nccl", "CUDA_VISIBLE_DEVICES", "MACA_VISIBLE_DEVICES", "mx-smi", 64, 8, None, "bf16"),
    "mthreads": (
        "musa", "torch_musa", "mccl", "MUSA_VISIBLE_DEVICES", "MTHREADS_VISIBLE_DEVICES", "mthreads-gmi", 80, 8, True,
        "fp8",
    ),
    "kunlunxin": ("cuda", None, "nccl", "XPU_VISIBLE_DEVICES", "CXPU_VISIBLE_DEVICES", "xpu-smi", 96, 8, False, "bf16"),
    "zhenwu": ("cuda", None, "nccl", "CUDA_VISIBLE_DEVICES", None, "ppu-smi", 96, 16, False, "bf16"),
    "iluvatar": ("cuda", None, "nccl", "CUDA_VISIBLE_DEVICES", "IX_VISIBLE_DEVICES", "ixsmi", 64, 8, False, "bf16"),
}  # fmt: skip

# Section 4.4: Flash's dtype, ranks and nodes, its image tag; Pro's image tag; where the repositories are.
RELEASES = {
    "nvidia": ("fp8", (4,), 1, "202604240000", "202604271111", "Flash Pro"),
    "ascend": ("bf16", (16,), 2, "202604240207", None, "Pro"),
    "hygon": ("bf16", (16,), 2, "202604242039", "202604250050", "Pro"),
    "metax": ("bf16", (16,), 2, "202604240026", "202604251011", "Pro"),
    "mthreads": ("fp8", (8,), 1, "202604240000", "202604242342", "Pro"),
    "kunlunxin": ("bf16", (8, 16), None, "202604232050", None, "Flash"),
    "zhenwu": ("bf16", (16,), 1, "202604252026", None, "Flash"),
    "iluvatar": ("bf16", (16,), 2, "202604240000", None, "Flash"),
}


def facts_of(chip: Chip) -> tuple[Any, ...]:
    devices = chip.visible_devices
    return (
        chip.torch_device, chip.torch_module, chip.dist_backend, devices.process, devices.container, chip.smi,
        chip.memory_gib, chip.cards_per_node, chip.fp8, chip.release_dtype,
    )  # fmt: skip


def test_the_table_says_what_the_facts_say() -> None:
    assert {chip.id: facts_of(chip) for chip in load_chips().values()} == FACTS
    assert not any(chip.fp4 for chip in load_chips().values())


@pytest.mark.parametrize("name", RELEASES)
def test_the_releases_there_are(name: str) -> None:
    dtype, mp, nodes, flash_tag, pro_tag, on_hugging_face = RELEASES[name]
    flash, pro = load_chips()[name].published.flash, load_chips()[name].published.pro
    assert (flash.dtype, flash.mp, flash.nodes) == (dtype, mp, nodes)
    assert flash.image is not None
    assert flash.image.startswith(HARBOR)
    assert flash.image.endswith(f":{flash_tag}")
    pro_image = None if pro is None else pro.image
    assert (pro_image or "none:none").split(":")[1] == (pro_tag or "none")
    found = [size for size, model in (("Flash", flash), ("Pro", pro)) if model and "huggingface" in model.hubs]
    assert " ".join(found) == on_hugging_face
    assert "modelscope" in flash.hubs
    assert pro is None or "modelscope" in pro.hubs


def test_versions() -> None:
    """Section 4.3 of the fact sheet, (a) and (b)."""
    chips = load_chips()
    assert {name: [(stack.driver, stack.sdk) for stack in chip.stacks] for name, chip in chips.items()} == {
        "nvidia": [("610.43.02", "CUDA 12.8"), ("610.43.02", "CUDA 13.3")],
        "ascend": [("25.5.0", "CANN 8.5.0"), ("26.0.rc1", "CANN 9.0.0")],
        "hygon": [("6.3.30-V1.4.1a", "DTK 26.04")],
        "metax": [("3.8.30", "MACA 3.7.2.1"), ("3.9.6", "MACA 3.8.1.3")],
        "mthreads": [("5.2.0-server", "MUSA 4.3.6"), ("5.2.0-server", "MUSA 5.2.0")],
        "kunlunxin": [("5.37.1", "XRE 5.37.1")],
        "zhenwu": [(None, "PPU SDK 2.0.0")],
        "iluvatar": [("4.4.0", "CoreX 4.4.0")],
    }
    asked = {name: chip.release_stack.flagtree if chip.release_stack else None for name, chip in chips.items()}
    assert asked == {
        "nvidia": "0.5.0+3.5", "ascend": "0.5.0+ascend3.2", "hygon": "0.5.0+hcu3.0", "metax": "3.1.0+metax3.5.3.9",
        "mthreads": "0.5.0+mthreads3.1", "kunlunxin": "0.5.1+xpu3.0", "zhenwu": None, "iluvatar": "0.5.0+iluvatar3.1",
    }  # fmt: skip


def test_docker_flags() -> None:
    """Section 4.2 of the fact sheet; for Zhenwu, the device nodes of the vllm-plugin-FL tests."""
    ascend, zhenwu = get_chip("ascend"), get_chip("zhenwu")
    assert ascend.docker_flags("toolkit") == (
        "--env=ASCEND_VISIBLE_DEVICES=0,1,2,3,4,5,6,7", "--privileged", "--network=host", "--ipc=host",
        "--shm-size=64g",
    )  # fmt: skip
    davinci = [flag for flag in ascend.docker_flags("raw") if flag.startswith("--device=/dev/davinci")]
    assert davinci == [f"--device=/dev/davinci{card}" for card in range(8)] + ["--device=/dev/davinci_manager"]
    assert "--volume=/opt/hyhal:/opt/hyhal" in get_chip("hygon").docker_flags("raw")
    assert {"--device=/dev/kfd", "--device=/dev/mkfd"} <= set(get_chip("hygon").docker_flags("raw"))
    assert get_chip("mthreads").docker_flags("toolkit")[:2] == (
        "--runtime=mthreads",
        "--env=MTHREADS_VISIBLE_DEVICES=all",
    )
    assert zhenwu.docker_flags("raw")[2:18] == tuple(f"--device=/dev/alixpu_ppu{card}" for card in range(16))
    with pytest.raises(UsageError, match=r"zhenwu: no toolkit flags \(unknown: "):
        zhenwu.docker_flags("toolkit")


@pytest.mark.parametrize("name", FACTS)
def test_no_flag_is_left_unfilled(name: str) -> None:
    chip = get_chip(name)
    flags = [*chip.docker_flags("raw"), *(chip.docker_flags("toolkit") if chip.container.toolkit else ())]
    assert not [flag for flag in flags if "{" in flag]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t["hygon"]["why_null"].pop("fp8"), r"null without a reason: \['fp8'\]"),
        (lambda t: t["hygon"].update(fp8=False), r"reason beside a value: \['fp8'\]"),
        (lambda t: t["hygon"]["why_null"].update(fp8="who knows"), r"why_null\.fp8"),
        (lambda t: t["zhenwu"]["why_null"].pop("container.toolkit"), r"container\.toolkit"),
        (lambda t: t["zhenwu"]["why_null"].pop("stacks.0.driver"), r"stacks\.0\.driver"),
        (lambda t: t["metax"]["why_null"].pop("fp8"), r"null without a reason: \['fp8'\]"),
        (lambda t: t["metax"].update(colour="red"), "colour"),
        (lambda t: t["metax"]["container"].update(colour="red"), r"container\.colour"),
        (lambda t: t["metax"].update(release_dtype="int8"), "release_dtype"),
        (lambda t: t["metax"].pop("smi"), "smi"),
        (lambda t: t["metax"]["products"][0].update(memory_gib=0), "memory_gib"),
        (lambda t: t["metax"]["products"][0].update(memory_gib="64"), "memory_gib"),
        (lambda t: t["metax"].update(products=[]), "products"),
        (lambda t: t["metax"].update(aliases=["moore"]), "names claimed twice: moore"),
        (lambda t: t["metax"].update(aliases=["ascend"]), "names claimed twice: ascend"),
        (lambda t: t["metax"]["container"].update(raw_flags=["--device /dev/mxcd"]), "raw_flags"),
        (lambda t: t["metax"]["evidence"][0].update(mark="guessed"), r"evidence\.0\.mark"),
        (lambda t: t["metax"]["evidence"][1]["fields"].remove("smi"), r"claims without evidence: \['smi'\]"),
        (lambda t: t["metax"]["evidence"][0]["fields"].append("smi.x"), r"no field of a chip: \['smi\.x'\]"),
        (lambda t: t["metax"]["evidence"][0]["sources"].append("hearsay"), r"cited but not listed, .*\['hearsay'\]"),
        (lambda t: t["metax"].update(dist_backend="mccl"), "torch device 'cuda' differ"),
        (lambda t: t["metax"].update(graph_class="MACAGraph"), "torch device 'cuda' differ"),
        (lambda t: t["metax"].update(graph_class=None), r"null without a reason: \['graph_class'\]"),
    ],
)
def test_the_schema_is_strict(edit: Callable[[Any], Any], said: str) -> None:
    table = yaml.safe_load(TEXT)
    parse_chips(yaml.safe_dump(table))
    broken = copy.deepcopy(table)
    edit(broken["chips"])
    with pytest.raises(ValueError, match=said):
        parse_chips(yaml.safe_dump(broken))


def test_graphs() -> None:
    """What the torch modules call them: vllm-plugin-FL's table, torch_npu and torch_musa themselves."""
    named = {chip.torch_device: chip.graph_class for chip in load_chips().values()}
    assert named == {"cuda": "CUDAGraph", "npu": "NPUGraph", "musa": "MUSAGraph"}
    seen = {
        chip.id
        for chip in load_chips().values()
        for e in chip.evidence
        if "graph_class" in e.fields and e.mark == "verified"
    }
    assert seen == {"nvidia", "ascend", "metax", "hygon", "mthreads", "iluvatar"}  # those with static graphs there


def test_hygon_is_two_products() -> None:
    """Table of the fact sheet: 64 x 8, the BW1100 144."""
    products = get_chip("hygon").products
    assert [(one.name, one.memory_gib, one.cards_per_node) for one in products] == [
        ("DCU BW1000", 64, 8), ("DCU BW1100", 144, 8),
    ]  # fmt: skip


def test_names() -> None:
    historic = {"huawei": "ascend", "tianshu": "iluvatar", "moore": "mthreads", "muxi": "metax", "t-head": "zhenwu"}
    assert {name: get_chip(name).id for name in historic} == historic
    with pytest.raises(UsageError, match=r"'mthread' is not in the table \(nvidia, .*did you mean 'mthreads'"):
        get_chip("mthread")
    with pytest.raises(UsageError, match=r"'abc' is not in the table \([a-z, ]*\)$"):
        get_chip("abc")
    with pytest.raises(UsageError, match="'cuda' is not in the table"):  # six platforms are cuda to torch
        get_chip("cuda")


def test_reading_the_table_loads_no_torch() -> None:
    code = "import sys; from flagrelease.chips.table import load_chips; load_chips(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "chips.md").read_text(encoding="utf-8")
    hardware = {True: "yes", False: "no", None: "unknown"}
    rows = [
        f"| {chip.id} | {chip.vendor} {chip.products[0].name} | {chip.torch_device} | {chip.graph_class} | "
        f"{chip.dist_backend} ({chip.dist_library}) | {chip.memory_gib} x {chip.cards_per_node} | "
        f"{hardware[chip.fp8]} | {chip.release_dtype} |"
        for chip in load_chips().values()
    ]
    shown = [line for line in page.splitlines() if line.startswith("| ")]
    assert shown[1:] == rows, "paste these rows into docs/chips.md:\n" + "\n".join(rows)
