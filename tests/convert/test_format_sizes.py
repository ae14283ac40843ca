"""Sizes of the formats at full size: the totals of the fact sheets, which come from formulas and published sizes.

Sources: serving-stacks.md 3 (INT8), deepseek-v4.md (-Base), the README of shared/data and deepseek-v4.1-and-dspark.md
(the checkpoints). The configs are DeepSeek's, with the keys by which DSpark and Pro differ from the preview of Flash.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from harness import plan_of

from flagrelease.convert.planning.fit import hub_problems
from flagrelease.model.synthetic import Stored
from flagrelease.model.v4.synthetic import write_checkpoint
from flagrelease.source.source import Source

FLASH: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "configs" / "flash.json").read_text())
PRO = FLASH | {
    "hidden_size": 7168, "index_topk": 1024, "moe_intermediate_size": 3072, "n_routed_experts": 384,
    "num_attention_heads": 128, "num_hidden_layers": 61, "o_groups": 16, "q_lora_rank": 1536,
    "routed_scaling_factor": 2.5, "expert_dtype": "fp4", "compress_ratios": [128, 128] + 29 * [4, 128] + [4, 0],
}  # fmt: skip


def dspark(config: dict[str, Any], rank: int, layers: list[int]) -> dict[str, Any]:
    return config | {
        "dspark_block_size": 5, "dspark_noise_token_id": 128799, "dspark_markov_rank": rank,
        "dspark_target_layer_ids": layers, "compress_ratios": [*config["compress_ratios"], 0, 0],
    }  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A checkpoint with its published tensors and bytes, and bytes of tensors for some targets."""

    config: dict[str, Any]
    tensors: int
    total: int
    targets: dict[str, int]
    stored: Stored = field(default_factory=Stored)


CASES = {
    "Flash": Case(FLASH, 69_187, 159_609_485_896, {"int8-experts:hf": 298_876_788_296}),
    "Flash-Base": Case(
        FLASH | {"expert_dtype": "fp8"}, 69_187, 292_555_345_480,
        {"fp8:hf": 292_555_345_480, "native:hf": 292_555_345_480}, Stored("fp8", "F32"),
    ),
    "Flash-0731": Case(
        dspark(FLASH, 256, [40, 41, 42]), 72_317, 166_878_536_440,
        {"int8:hf": 307_732_157_432, "int8-experts:hf": 312_483_415_032, "fp8-e8m0:hf": 305_811_972_856},
    ),
    "Pro": Case(PRO, 145_116, 864_704_792_696, {"int8-experts:hf": 1_626_373_256_312}),
    "Pro-0813": Case(
        dspark(PRO, 512, [58, 59, 60]), 149_782, 892_727_580_904,
        {"int8-experts:hf": 1_679_001_881_128, "fp8-e8m0:hf": 1_653_841_189_096},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if "0731" not in n else n for n in CASES])
def test_sizes_are_those_of_the_facts(name: str, full_size: Callable[[str], Source], tmp_path: Path) -> None:
    case = CASES[name]
    if name != "Flash":
        write_checkpoint(tmp_path / "source", case.config, stored=case.stored, holes=True)
    plan = plan_of(full_size("flash") if name == "Flash" else tmp_path / "source", *case.targets)
    assert (len(plan.source.index.tensors), plan.source.index.total_size) == (case.tensors, case.total)
    found = {
        str(release.target): sum(part.nbytes for _, _, part in release.parts.values()) for release in plan.releases
    }
    assert found == case.targets
    for release in plan.releases:
        assert hub_problems(release, ("huggingface", "modelscope")) == []


def test_fp8_of_flash_is_base_but_for_its_dense_scales(full_size: Callable[[str], Source]) -> None:
    """-Base has them in F32; those of Flash are E8M0 and are kept, which every stack reads by value."""
    (release,) = plan_of(full_size("flash"), "fp8:hf").releases
    dense = [
        part
        for tensor, _, part in release.parts.values()
        if part.role == "scale" and ".experts." not in tensor.spec.name
    ]
    assert {part.dtype for part in dense} == {"F8_E8M0"}
    total = sum(part.nbytes for _, _, part in release.parts.values())
    assert total + 3 * sum(part.nbytes for part in dense) == 292_555_345_480
