"""The card of a DeepSeek-V4.1 release: its own tags, blocks, tables, images and commands, where V4's stood."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from publish_release import RECIPES, manifest_of, report_for
from safetensors import safe_open

from flagrelease.chips.table import get_chip
from flagrelease.publish.bom import make_bom
from flagrelease.publish.card import make_card
from flagrelease.publish.front_matter import check_card
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.records import Records
from flagrelease.records.manifest import FileRecord, TargetRecord, TensorRecord
from flagrelease.records.recipe import read_recipe
from flagrelease.records.report import parse_report

STACKS = {"native": "vllm", "bf16": None, "fp8": None}


def records_of(folder: Path, small: Path, dtype: Any, kept: bool = False) -> Records:
    """A release with the tensors of the small checkpoint. In BF16 no weight has a scale, unless tables are `kept`."""
    folder.mkdir()
    shutil.copyfile(small / "config.json", folder / "config.json")
    tensors: dict[str, TensorRecord] = {}
    for path in small.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                if dtype != "bf16" or not name.endswith(".scale") or (kept and ".engram.embed." in name):
                    stored = file.get_slice(name)
                    form = {"bf16": "BF16", "fp8": "F8_E4M3"}.get(dtype) if stored.get_dtype() == "I8" else None
                    shape = tuple(stored.get_shape())
                    tensors[name] = TensorRecord(dtype=form or stored.get_dtype(), shape=shape, blake3="6" * 64)
    files = [
        FileRecord(path=f"model-{n:05d}-of-00103.safetensors", size=5 * 10**9, sha256="7" * 64) for n in range(103)
    ]
    recipe = read_recipe(RECIPES / "deepseek-v4.1-flash.yaml")
    (spec,) = recipe.releases["nvidia"]
    made = manifest_of("deepseek-v4.1-flash", "nvidia", tuple(files), release="native-hf")
    target = TargetRecord(dtype=dtype, layout="hf", mp=None, o_groups=None)
    spec = spec.model_copy(update={"format": dtype, "stack": STACKS[dtype]})
    content = b"{}\n"
    return Records(
        folder, made.model_copy(update={"target": target, "tensors": tensors}), content,
        recipe.model_copy(update={"releases": {"nvidia": (spec,)}}), get_chip("nvidia"), "MIT",
        parse_report(json.dumps(report_for(content, "nvidia")).encode(), "report.json"), b"{}",
    )  # fmt: skip


@pytest.fixture
def card_of(v41_release: Path, tmp_path: Path) -> Any:
    def made(dtype: str, kept: bool = False) -> str:
        records = records_of(tmp_path / f"{dtype}-{kept}", v41_release, dtype, kept)
        return make_card(records, HUGGING_FACE, records.wanted.repo).decode()

    return made


def test_a_native_release_says_what_is_its_own(card_of: Any) -> None:
    text = card_of("native")
    tags = check_card(text, HUGGING_FACE)["tags"]
    assert "deepseek_v41" in tags
    assert "deepseek_v4" not in tags
    assert "| Engram tables | 2: FP8 as in the source, a scale for 32 elements of a row" in text
    assert "| images | vision tower and aligner as in the source" in text
    assert "DSpark: 3 stages, which draft blocks of 5 tokens" in text
    assert "flagrelease: not used; its engine does not run the draft stages of DeepSeek-V4.1 yet" in text


def test_stacks_are_started_as_for_this_family(card_of: Any) -> None:
    """V4's launch would name V4's tokenizer, and V4's loader was replayed on none of these headers."""
    text = card_of("native")
    assert "VLLM_ENGINE_READY_TIMEOUT_S=3600 vllm serve . --served-model-name DeepSeek-V4.1-Flash \\" in text
    assert "--tokenizer-mode=deepseek_v41" in text
    assert "deepseek_v4 " not in text
    assert "No loader was replayed on this release: what these stacks load of DeepSeek-V4.1 is known" in text
    assert "parameters are filled" not in text
    assert "python -m sglang.launch_server" in text
    assert '"method":"dspark","num_speculative_tokens":5' in text
    assert "stays at its initial value" not in text, "seen in the loader for V4"


def test_other_formats(card_of: Any) -> None:
    decoded, kept, fp8 = card_of("bf16"), card_of("bf16", kept=True), card_of("fp8")
    assert "| Engram tables | 2: BF16" in decoded
    assert "| Engram tables | 2: FP8 as in the source" in kept
    assert "FP8 in blocks of 32 x 32" in fp8
    for text in (decoded, kept, fp8):
        assert "transformers 5" not in text, "seen with V4 only"
        assert "library_name" not in text


def test_the_bill_of_materials_names_the_family(v41_release: Path, tmp_path: Path) -> None:
    records = records_of(tmp_path / "r", v41_release, "native")
    document = json.loads(make_bom(records, records.wanted.repo))
    parameters = document["metadata"]["component"]["modelCard"]["modelParameters"]
    assert parameters["architectureFamily"] == "DeepSeek-V4.1"
