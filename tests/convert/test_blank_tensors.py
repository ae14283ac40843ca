"""Shards whose half or tail is zero were converted and "proved": native model and port share the damage."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from harness import plan_of, run_plan

from flagrelease.errors import CheckpointError
from flagrelease.model.synthetic import Stored
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.records.manifest import read_manifest
from flagrelease.shard.index import open_checkpoint

W1 = "layers.1.ffn.experts.3.w1.weight"


@pytest.fixture
def source(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "source")


def blank(folder: Path, name: str) -> None:
    meta = open_checkpoint(folder).tensors[name]
    with Path(meta.file).open("r+b") as file:
        file.seek(meta.begin)
        file.write(bytes(meta.nbytes))


def tail_is_zero(path: Path, count: int) -> None:
    """What a download that was cut and then allocated leaves (shared/cases/conv/make_damaged_sources.sh)."""
    size = path.stat().st_size
    os.truncate(path, size - count)
    os.truncate(path, size)


@pytest.mark.parametrize("target", ["bf16:mp8", "fp8:hf", "native:hf"])
@pytest.mark.parametrize(
    "name",
    [W1, W1.replace(".weight", ".scale"), "layers.0.attn.wq_a.weight", "embed.weight", "layers.1.ffn.gate.weight"],
)
def test_a_weight_or_scale_of_zeros_is_refused_by_name_and_file(source: Path, target: str, name: str) -> None:
    blank(source, name)
    file = Path(open_checkpoint(source).tensors[name].file).name
    with pytest.raises(CheckpointError, match=f"{file}: tensor '{re.escape(name)}'.*bytes are zero"):
        run_plan(plan_of(source, target), source.parent / "out")
    assert not list((source.parent / "out").rglob("manifest.json"))


@pytest.mark.parametrize("share", [2, 16], ids=["half", "tail"])
def test_a_shard_that_ends_in_zeros_is_refused(source: Path, share: int) -> None:
    path = max(source.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    tail_is_zero(path, path.stat().st_size // share)
    with pytest.raises(CheckpointError, match=f"{path.name}: tensor .* stored bytes are zero"):
        run_plan(plan_of(source, "native:hf"), source.parent / "out")


def test_an_expert_of_zeros_is_named_as_one(source: Path) -> None:
    for part in ("w1", "w2", "w3"):
        for kind in ("weight", "scale"):
            blank(source, f"layers.1.ffn.experts.3.{part}.{kind}")
    with pytest.raises(CheckpointError, match=r"\(expert 3 of layers\.1\.ffn\)"):
        run_plan(plan_of(source, "native:hf"), source.parent / "out")


def test_the_recipe_can_allow_them(source: Path) -> None:
    blank(source, W1)
    plan = plan_of(source, "native:hf", allow_zero_tensors=("layers.*.experts.3.w1.weight",))
    run_plan(plan, source.parent / "out")
    manifest = read_manifest(source.parent / "out" / "native-hf")
    assert manifest.options["allow_zero_tensors"] == ["layers.*.experts.3.w1.weight"]


@pytest.mark.parametrize("name", ["layers.1.ffn.gate.bias", "layers.1.attn.attn_sink", "layers.1.hc_attn_base"])
def test_what_training_begins_with_zeros_may_be_zero(source: Path, name: str) -> None:
    blank(source, name)
    run_plan(plan_of(source, "native:hf"), source.parent / "out")


def test_fp8_experts_of_zeros_are_refused_too(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", tiny_config(expert_dtype="fp8"), stored=Stored(experts="fp8"))
    blank(tmp_path / "source", W1)
    with pytest.raises(CheckpointError, match=f"tensor '{re.escape(W1)}'.*bytes are zero"):
        run_plan(plan_of(tmp_path / "source", "bf16:hf"), tmp_path / "out")


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_float_scales_of_zeros_are_refused(dtype: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", tiny_config(), stored=Stored(scale_dtype=dtype))
    name = "layers.0.attn.wq_a.scale"
    blank(tmp_path / "source", name)
    with pytest.raises(CheckpointError, match=f"tensor '{re.escape(name)}'.*bytes are zero"):
        run_plan(plan_of(tmp_path / "source", "native:hf"), tmp_path / "out")
