"""`verify` replays the loaders of serving stacks: what the recipe's own stack would misread is not proved."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from format_planters import W2, drop_key
from plain_releases import CONFIG, Maker, Tensors, ordinary_tensors, write_source
from planters import WO_A, edit

from flagrelease.cli import main
from flagrelease.errors import UsageError, VerificationError
from flagrelease.verify.result import Check, VerifyReport
from flagrelease.verify.verify import verify_release

RELEASES = {
    "nvidia": [
        {"format": "fp8", "layout": "hf", "stack": "vllm"},
        {"format": "bf16", "layout": "mp2", "stack": "flagos"},
    ],
    "mthreads": [{"format": "fp8", "layout": "hf", "o_groups": "shared", "stack": "vllm-musa"}],
    "hygon": {"dtype": "int8", "layout": "hf", "stack": "hygon-bw1000"},
    "metax": [{"format": "native", "layout": "hf"}],
}


@pytest.fixture(scope="module")
def loadable(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Releases of a source that vLLM takes: its config names the method by which experts are chosen."""
    folder = tmp_path_factory.mktemp("loadable") / "source"
    return Maker(write_source(folder, ordinary_tensors(), CONFIG | {"topk_method": "noaux_tc"}), ordinary_tensors())


def with_recipe(releases: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.update(recipe={"releases": releases})


def stacks_of(report: VerifyReport) -> Check:
    return report.check("stacks")


def says(check: Check) -> str:
    return "\n".join(str(finding) for finding in check.findings)


def test_the_stacks_of_the_recipe_are_checked_and_the_others_are_told(loadable: Maker, tmp_path: Path) -> None:
    made = replace(loadable.of("fp8-hf"), spoil_manifest=with_recipe(RELEASES))
    report = verify_release(made.write(tmp_path / "release"), loadable.source)
    assert report.passed
    assert (stacks_of(report).status, stacks_of(report).checked) == ("pass", 2)
    assert stacks_of(report).detail == "vllm: loads, vllm-musa: loads"
    verdicts = {one.stack: one for one in report.stacks}
    assert [one.stack for one in report.stacks if one.named] == ["vllm", "vllm-musa"]
    assert (verdicts["vllm-ascend"].verdict, verdicts["vllm-ascend"].named) == ("refused", False)  # and fails nothing
    assert "flagos" not in verdicts  # it reads mp layouts


def test_an_mp_release_is_judged_by_its_whole_tensors(loadable: Maker, tmp_path: Path) -> None:
    made = replace(loadable.of("bf16-mp2"), spoil_manifest=with_recipe(RELEASES))
    report = verify_release(made.write(tmp_path / "release"))
    assert (stacks_of(report).status, stacks_of(report).detail) == ("pass", "flagos: loads")
    assert [one.stack for one in report.stacks] == ["flagos"]
    refused = verify_release(tmp_path / "release", stacks=["vllm"])
    assert "vllm refuses this release: it reads releases of layout hf, not mp" in says(stacks_of(refused))


def e8m0_scale(tensors: Tensors) -> None:
    """One scale of an expert as F8_E8M0, which vLLM copies as bytes."""
    tensors[f"{W2}.scale"] = tensors[f"{W2}.scale"].to(torch.float8_e8m0fnu)


def no_scale(tensors: Tensors) -> None:
    del tensors[f"{W2}.scale"]


def wo_a_as_int8(tensors: Tensors) -> None:
    stem = WO_A.removesuffix(".weight")
    rows = tensors[WO_A].to(torch.float32)
    scale = rows.abs().amax(1, keepdim=True) / 127
    tensors[WO_A] = torch.round(rows / scale).to(torch.int8)
    tensors[f"{stem}.weight_scale"] = scale


def vllms_index(folder: Path) -> None:
    index = json.loads((folder / "quant_model_weights.safetensors.index.json").read_text(encoding="utf-8"))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


WRONG = "loads this release without an error and computes with other numbers"
PLANTED: list[tuple[str, str, str, Callable[[Any], None], str]] = [
    ("fp8-hf", "vllm", "whole", e8m0_scale, f"vllm {WRONG}: .*{W2}.scale: the bytes of F8_E8M0 are copied as numbers"),
    ("fp8-e8m0-hf", "vllm", "whole", lambda _: None, f"vllm {WRONG}: E8M0 scales of FP8 experts are copied as bytes"),
    ("fp8-hf", "vllm", "folder", drop_key("config.json", "expert_dtype"), "vllm refuses this release: fp4 is assumed"),
    ("fp8-hf", "vllm", "whole", no_scale, f"vllm {WRONG}: .*no tensor of the release fills it; it keeps .*1.0"),
    ("int8-hf", "vllm", "whole", wo_a_as_int8, "vllm refuses this release: .*wo_a"),
    (
        "w8a8-ascend-hf",
        "vllm-ascend",
        "folder",
        vllms_index,
        f"vllm-ascend {WRONG}: model.safetensors.index.json is in the folder",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("release", "stack", "step", "plant", "words"), PLANTED)
def test_what_a_named_stack_would_misread_or_refuse_is_not_proved(
    loadable: Maker, tmp_path: Path, release: str, stack: str, step: str, plant: Callable[[Any], None], words: str
) -> None:
    sound = loadable.of(release)
    if release != "fp8-e8m0-hf":
        assert stacks_of(verify_release(sound.write(tmp_path / "sound"), stacks=[stack])).status == "pass"
    folder = replace(sound, **{f"spoil_{step}": plant}).write(tmp_path / "release")
    report = verify_release(folder, stacks=[stack])
    assert stacks_of(report).status == "fail"
    assert not report.passed
    assert re.search(words, says(stacks_of(report))), says(stacks_of(report))


def test_a_stack_of_which_nothing_is_known_does_not_fail(loadable: Maker, tmp_path: Path) -> None:
    report = verify_release(loadable.of("native-hf").write(tmp_path / "release"), stacks=["iluvatar"])
    assert (stacks_of(report).status, stacks_of(report).detail) == ("pass", "iluvatar: unknown")


@pytest.mark.parametrize(
    ("releases", "words"),
    [
        ({"nvidia": [{"format": "fp8", "layout": "hf", "stack": "vllm-2"}]}, "'vllm-2', which is not among the stacks"),
        ({"nvidia": 7}, "the recipe's releases cannot be read: "),
    ],
)
def test_a_recipe_that_names_no_known_stack_fails(loadable: Maker, tmp_path: Path, releases: Any, words: str) -> None:
    made = replace(loadable.of("fp8-hf"), spoil_manifest=with_recipe(releases))
    check = stacks_of(verify_release(made.write(tmp_path / "release")))
    assert (check.status, check.findings[0].file) == ("fail", "manifest.json")
    assert words in says(check)


BLOCKS = [
    {"quant_method": "fp8", "ignored_layers": 5},
    {"quant_method": "compressed-tensors", "config_groups": [1]},
    {"quant_method": "compressed-tensors", "config_groups": {"a": {"targets": ["re:("]}}},
    {"quant_method": "fp8", "weight_block_size": [0, 128]},
    [],
    "fp8",
]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_config_that_no_loader_can_take_is_a_finding_and_no_traceback(
    loadable: Maker, tmp_path: Path, block: Any
) -> None:
    plant = edit("config.json", lambda config: config.update(quantization_config=block))
    folder = replace(loadable.of("fp8-hf"), spoil_folder=plant).write(tmp_path / "release")
    report = verify_release(folder, stacks=["vllm"])
    assert stacks_of(report).status == "fail"
    assert stacks_of(verify_release(folder)).status == "not-run"


def test_the_command_names_stacks(loadable: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(loadable.of("fp8-e8m0-hf").write(tmp_path / "release"))
    assert main(["verify", folder]) == 0
    assert "vllm (0.33.0) silently wrong: E8M0 scales" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", folder, "--stack", "sglang"]) == 0
    assert "* sglang (0.5.23) loads" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", folder, "--stack", "sglang", "--stack", "vllm", "--json"]) == VerificationError.exit_code
    document = json.loads(capsys.readouterr().out)
    assert [one["stack"] for one in document["stacks"] if one["named"]] == ["sglang", "vllm"]
    assert main(["verify", folder, "--stack", "vlm"]) == UsageError.exit_code
    assert "stack 'vlm' is not in the table" in capsys.readouterr().err
    with pytest.raises(UsageError, match="stack 'vlm'"):
        verify_release(Path(folder), stacks=["vlm"])
