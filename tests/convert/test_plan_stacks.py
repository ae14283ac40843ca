"""What `plan` says of serving stacks, and the releases that a recipe's stack would not load."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import plan_of

from flagrelease.chips.loading.verdict import judge
from flagrelease.chips.stacks import load_stacks
from flagrelease.chips.table import get_chip
from flagrelease.cli import main
from flagrelease.convert.request import ChipTarget
from flagrelease.convert.stacks import _few_experts, _planned, judge_stacks
from flagrelease.errors import UsageError
from flagrelease.formats.releases import RELEASE_FORMATS
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint

CONFIG = tiny_config(topk_method="noaux_tc")  # as DeepSeek's; vLLM's gates have no bias without it


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "checkpoint"
    write_checkpoint(folder, CONFIG)
    return folder


def write_recipe(path: Path, releases: dict[str, Any]) -> Path:
    document = {
        "schema_version": 1,
        "model": "M",
        "source": {"repo": "a/b", "revision": "c", "license": "MIT"},
        "convert": {"lossy_repack": {"largest_share_of_inexact_rows": 1}},
        "releases": releases,
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def planned(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["plan", *map(str, words), "--json"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_target_is_judged_by_all_stacks_and_a_chip_by_its_own(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (release,) = planned(capsys, checkpoint, "--target", "fp8:hf")["releases"]
    found = {one["stack"]: one["verdict"] for one in release["stacks"]}
    assert found.keys() == {name for name, stack in load_stacks().items() if "hf" in stack.layouts}
    assert (found["vllm"], found["vllm-ascend"]) == ("loads", "refused")
    recipe = write_recipe(
        tmp_path / "r.yaml",
        {"mthreads": [{"format": "fp8", "layout": "hf", "stack": "vllm-musa"}, {"format": "fp8", "layout": "mp8"}]},
    )
    hf, mp = planned(capsys, recipe, "--checkpoint", checkpoint)["releases"]
    assert mp["stacks"] == []
    (musa,) = hf["stacks"]
    assert (musa["stack"], musa["asked"], musa["chips"], musa["verdict"]) == ("vllm-musa", True, ["mthreads"], "loads")


def test_flags_that_a_stack_needs_are_shown(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (release,) = planned(capsys, checkpoint, "--target", "int8:hf")["releases"]
    sglang = next(one for one in release["stacks"] if one["stack"] == "sglang")
    assert (sglang["verdict"], sglang["environment"]) == ("loads with flags", ["SGLANG_OPT_FUSE_WQA_WKV=0"])
    assert main(["plan", str(checkpoint), "--target", "int8:hf"]) == 0
    assert "int8-hf and the serving stacks" in capsys.readouterr().out


def test_what_nobody_knows_of_the_recipes_stack_is_said(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", {"iluvatar": {"format": "bf16", "layout": "hf", "stack": "iluvatar"}})
    document = planned(capsys, recipe, "--checkpoint", checkpoint)
    (note,) = document["notes"]
    assert note.startswith("bf16-hf: whether iluvatar loads it is not known: nothing of it could be read")
    assert document["stack_problems"] == []


def test_a_release_that_the_recipes_stack_would_misread_is_refused_before_a_byte(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """stacks.yaml lets the format pass, and the headers of the plan do not: as with the E8M0 scales of our own fp8."""
    from flagrelease.convert import stacks

    original = stacks._planned

    def with_e8m0_scales(release: Any) -> Any:
        found = original(release)
        tensors = {
            name: ("F8_E8M0" if ".experts." in name and dtype == "F32" else dtype, shape)
            for name, (dtype, shape) in found.tensors.items()
        }
        return replace(found, tensors=tensors)

    monkeypatch.setattr(stacks, "_planned", with_e8m0_scales)
    monkeypatch.setattr(stacks, "_few_experts", lambda release, whole: whole)
    recipe = write_recipe(tmp_path / "r.yaml", {"nvidia": {"format": "fp8", "layout": "hf", "stack": "vllm"}})
    words = ["convert", str(recipe), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
    assert main(words) == UsageError.exit_code
    said = capsys.readouterr().err
    assert "fp8-hf: the recipe makes it for vllm, which loads it without an error and answers nonsense" in said
    assert "ffn.experts.0.w1.scale: the bytes of F8_E8M0 are copied as numbers into F32" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", RELEASE_FORMATS)
def test_a_few_experts_are_judged_like_all(name: str, tmp_path: Path) -> None:
    """The plan looks at two of sixteen experts a layer: no stack may judge them otherwise."""
    write_checkpoint(tmp_path / "source", CONFIG, holes=True)
    (release,) = plan_of(tmp_path / "source", f"{name}:hf").releases
    whole = _planned(release)
    few = _few_experts(release, whole)
    assert len(few.tensors) < len(whole.tensors) / 2
    for stack in load_stacks().values():
        if "hf" in stack.layouts:
            judged, all_of_it = judge(stack, few), judge(stack, whole)
            assert (judged.verdict, judged.flags, judged.environment) == (
                all_of_it.verdict, all_of_it.flags, all_of_it.environment,
            )  # fmt: skip


def test_experts_that_are_stored_differently_are_all_looked_at(checkpoint: Path) -> None:
    (release,) = plan_of(checkpoint, "fp8:hf").releases
    name = next(name for name in release.parts if name.endswith("experts.15.w1.scale"))
    tensor, action, part = release.parts[name]
    release.parts[name] = (tensor, action, part._replace(dtype="F8_E8M0"))
    (vllm, *_) = judge_stacks(release, [ChipTarget(get_chip("nvidia"), release.target, "vllm")])
    assert vllm.verdict == "silently wrong"
