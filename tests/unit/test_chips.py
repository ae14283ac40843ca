"""The chip table: complete, strict, and what the fact sheet says."""

from __future__ import annotations

import copy
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from flagrelease.chips import get_chip, load_chips, parse_chips, repo_name
from flagrelease.errors import UsageError

TEXT = resources.files("flagrelease").joinpath("chips.yaml").read_text(encoding="utf-8")


def changed(edit: Any) -> str:
    table = copy.deepcopy(yaml.safe_load(TEXT))
    edit(table)
    return yaml.safe_dump(table)


# Written from the fact sheet (section 4.1), not from chips.yaml.
FACTS = {
    "nvidia": ("cuda", "nccl", "CUDA_VISIBLE_DEVICES", 96, 8, "fp8"),
    "ascend": ("npu", "hccl", "ASCEND_RT_VISIBLE_DEVICES", 64, 8, "bf16"),
    "hygon": ("cuda", "nccl", "HIP_VISIBLE_DEVICES", 64, 8, "bf16"),
    "metax": ("cuda", "nccl", "CUDA_VISIBLE_DEVICES", 64, 8, "bf16"),
    "mthreads": ("musa", "mccl", "MUSA_VISIBLE_DEVICES", 80, 8, "fp8"),
    "kunlunxin": ("cuda", "nccl", "XPU_VISIBLE_DEVICES", 96, 8, "bf16"),
    "zhenwu": ("cuda", "nccl", "CUDA_VISIBLE_DEVICES", 96, 16, "bf16"),
    "iluvatar": ("cuda", "nccl", "CUDA_VISIBLE_DEVICES", 64, 8, "bf16"),
}


def test_the_table_says_what_the_facts_say() -> None:
    assert {
        chip.id: (
            chip.torch_device, chip.dist_backend, chip.visible_devices.process, chip.memory_gib, chip.cards_per_node,
            chip.release_dtype,
        )
        for chip in load_chips().values()
    } == FACTS  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t["hygon"]["unknown"].pop("fp8"), r"null without a reason: \['fp8'\]"),
        (lambda t: t["hygon"].update(fp8=False), r"reason beside a value: \['fp8'\]"),
        (lambda t: t["metax"].update(colour="red"), "colour"),
        (lambda t: t["metax"].update(release_dtype="int8"), "release_dtype"),
        (lambda t: t["metax"].pop("smi"), "smi"),
        (lambda t: t["metax"].update(sources=[]), "sources"),
        (lambda t: t["metax"]["products"][0].update(memory_gib=0), "memory_gib"),
        (lambda t: t["metax"].update(aliases=["moore"]), "names claimed twice: moore"),
        (lambda t: t["zhenwu"]["unknown"].pop("container.flags"), r"container\.flags"),
    ],
)
def test_the_schema_is_strict(edit: Any, said: str) -> None:
    parse_chips(TEXT)
    with pytest.raises(ValueError, match=said):
        parse_chips(changed(edit))


def test_names() -> None:
    assert get_chip("mthreads") is get_chip("moore")
    assert get_chip("huawei").id == "ascend"
    with pytest.raises(UsageError, match=r"'mthread' is not in the table .*did you mean 'mthreads'"):
        get_chip("mthread")
    with pytest.raises(UsageError, match="'abc' is not in the table"):
        get_chip("abc")


def test_repository_names() -> None:
    """Names of published repositories, from the fact sheet (section 2.6)."""
    assert repo_name("DeepSeek-V4-Flash", get_chip("mthreads")) == "FlagRelease/DeepSeek-V4-Flash-mthreads-FlagOS"
    assert repo_name("DeepSeek-V4-Flash", get_chip("nvidia")) == "FlagRelease/DeepSeek-V4-Flash-nvidia-FlagOS"
    assert repo_name("Qwen3.8-27B", get_chip("moore"), "fp8") == "FlagRelease/Qwen3.8-27B-FP8-mthreads-FlagOS"


def test_reading_the_table_loads_no_torch() -> None:
    code = "import sys; from flagrelease.chips import load_chips; load_chips(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "chips.md").read_text(encoding="utf-8")
    for chip in load_chips().values():
        hardware = {True: "yes", False: "no", None: "unknown"}
        row = (
            f"| {chip.id} | {chip.vendor} {chip.products[0].name} | {chip.torch_device} | {chip.dist_backend} | "
            f"{chip.memory_gib} x {chip.cards_per_node} | {hardware[chip.fp8]} | {chip.release_dtype} |"
        )
        assert row in page
