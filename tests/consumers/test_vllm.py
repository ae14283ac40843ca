"""vLLM's own DeepSeek-V4 loads whole releases of the trained small model on a CPU; every parameter is compared.

It is the judge of our replay: for each release the replay must say beforehand what vLLM then does. The environment is
made by `make_environment.sh FOLDER`; `pytest -m consumers --consumers FOLDER` runs this.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import variants

from flagrelease.chips.loading.folder import release_in
from flagrelease.chips.loading.methods import hold
from flagrelease.chips.loading.replay import Replay, replay
from flagrelease.chips.loading.rules import load_loaders
from flagrelease.cli import main as flagrelease

pytestmark = [pytest.mark.slow, pytest.mark.consumers]
SOURCE = Path(__file__).parents[2] / "examples" / "tiny" / "flagrelease-tiny-v4"
DRIVER = Path(__file__).parent / "load_in_vllm.py"
EXPERTS = 5 * 16 * 3  # layers, experts, projections
TENSORS = 385  # of the model without its draft
IN_DRAFT = 16 * 3 + 29  # of the draft, experts first
F32, E8M0 = torch.float32, torch.float8_e8m0fnu
WO_A = [f"layers.{layer}.attn.wo_a" for layer in range(6)]
ALL_INT8 = {"expert_dtype": None, "quantization_config": variants.compressed("int", ["Linear"], [r"re:.*attn\.wo_a$"])}
FP8 = {"expert_dtype": "fp8"}


def loaded(consumers: Path, release: Path, *draft: str) -> dict[str, Any]:
    done = subprocess.run(
        [consumers / "venv" / "bin" / "python", DRIVER, release, SOURCE, *draft],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def foretold(folder: Path) -> Replay:
    return replay(load_loaders()["vllm"], release_in(folder))


def wrong_tensors(result: dict[str, Any]) -> set[str]:
    return {name for name, found in result["tensors"].items() if found["rms"] > 0.05}


def foretold_wrong(done: Replay) -> set[str]:
    """The weights that the replay calls wrong, by the names of the checkpoint."""
    names = set()
    for finding in done.findings:
        if finding.kind in ("misread", "unfilled") and "mtp." not in finding.parameter:
            name = finding.tensor or finding.parameter.removeprefix("model.")
            names.add(re.sub(r"\.(scale|weight_scale|weight_scale_inv)$", ".weight", name))
    return names


@pytest.mark.parametrize(
    "form", ["native", "fp8", "fp8-e8m0", "fp8-bf16-wo-a", "int8", "int8-experts", "fp8-channel", "bf16"]
)
def test_releases_of_the_converter(consumers: Path, tmp_path: Path, form: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = (SOURCE.parents[2] / "recipes" / "tiny.yaml").read_text(encoding="utf-8")
    text = text.replace("lossy_repack: refuse", "lossy_repack: allow").replace("../examples", str(SOURCE.parents[1]))
    recipe.write_text(text, encoding="utf-8")
    assert flagrelease(["convert", str(recipe), "--target", f"{form}:hf", "--out", str(tmp_path)]) == 0
    folder = tmp_path / f"{form}-hf"
    result = loaded(consumers, folder)
    assert (result["error"], result["never_compared"]) == (None, [])
    assert len(result["tensors"]) == TENSORS
    assert wrong_tensors(result) == foretold_wrong(foretold(folder))
    assert len(wrong_tensors(result)) == (EXPERTS if form == "fp8-e8m0" else 0)
    if form not in ("int8", "fp8-channel", "fp8-e8m0"):
        assert all(found["exact"] for found in result["tensors"].values())


def test_e8m0_scales_of_experts_arrive_as_their_bytes_and_float32_ones_are_right(
    consumers: Path, tmp_path: Path
) -> None:
    def one_scale(tensors: variants.Tensors) -> variants.Tensors:
        name = "layers.0.ffn.experts.0.w2.scale"
        return {**tensors, name: torch.full_like(tensors[name].to(F32), 2**-7).to(tensors[name].dtype)}

    for dtype, arrives in ((E8M0, 120.0), (F32, 2**-7)):
        folder = variants.write(SOURCE, tmp_path / str(dtype), variants.block_fp8(dtype), None, FP8, change=one_scale)
        result = loaded(consumers, folder)
        assert result["error"] is None
        assert result["an_expert_scale"] == arrives
        wrong = wrong_tensors(result)
        assert len(wrong) == (EXPERTS if dtype == E8M0 else 1)  # the one whose scale was planted here
        assert wrong - {"layers.0.ffn.experts.0.w2.weight"} == foretold_wrong(foretold(folder)) - {
            "layers.0.ffn.experts.0.w2.weight"
        }


SOUND = {
    "fp8 with F32 scales": (variants.block_fp8(F32), None, None, FP8),
    "fp8 with wo_a in BF16": (
        variants.block_fp8(F32), None, variants.plain,
        {**FP8, "quantization_config": {
            "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "scale_fmt": "ue8m0",
            "weight_block_size": [128, 128], "ignored_layers": WO_A}},
    ),
    "int8": (variants.channel_int8, variants.channel_int8, variants.plain, ALL_INT8),
    "int8 experts": (
        variants.channel_int8, variants.plain, variants.plain,
        {"expert_dtype": None, "quantization_config": variants.compressed("int", [r"re:.*\.experts\.\d+\..*"], [])},
    ),
    "channel fp8": (
        variants.channel_fp8, variants.channel_fp8, variants.plain,
        {"expert_dtype": None,
         "quantization_config": variants.compressed("float", ["Linear"], [r"re:.*attn\.wo_a$"])},
    ),
    "bf16": (variants.plain, variants.plain, None, {"expert_dtype": None, "quantization_config": None}),
}  # fmt: skip


@pytest.mark.parametrize("form", SOUND)
def test_every_parameter_of_a_sound_release_holds_the_sources_weight(
    consumers: Path, tmp_path: Path, form: str
) -> None:
    experts, linears, wo_a, config = SOUND[form]
    folder = variants.write(SOURCE, tmp_path / "release", experts, linears, config, wo_a)
    done = foretold(folder)
    assert done.filled == done.parameters
    result = loaded(consumers, folder)
    assert (result["error"], result["never_compared"], len(result["tensors"])) == (None, [], TENSORS)
    assert not wrong_tensors(result)
    if "int8" not in form:  # powers of two and BF16 keep what FP4 and FP8 hold
        least = 0.999 if form == "channel fp8" else 1.0
        assert min(found["exact_share"] for found in result["tensors"].values()) >= least


@pytest.mark.parametrize("form", [form for form in SOUND if form != "bf16"])  # MTP alone, so these are enough
def test_the_draft_of_a_sound_release_holds_the_sources_weights(consumers: Path, tmp_path: Path, form: str) -> None:
    experts, linears, wo_a, config = SOUND[form]
    folder = variants.write(SOURCE, tmp_path / "release", experts, linears, config, wo_a)
    result = loaded(consumers, folder, "draft")
    # the model's own, which the draft is given when it runs
    shared = {"model.embed_tokens.weight", "model.layers.5.shared_head.head.weight"}
    assert (result["error"], set(result["never_compared"])) == (None, shared)
    assert len(result["tensors"]) == IN_DRAFT
    assert not wrong_tensors(result)


def test_wo_a_of_a_draft_that_is_listed_as_mtp_is_wrong_there(consumers: Path, tmp_path: Path) -> None:
    experts, linears, wo_a, config = SOUND["fp8 with wo_a in BF16"]
    listed = [*(name for name in WO_A if ".5." not in name), "mtp.0.attn.wo_a"]
    block = {**config["quantization_config"], "ignored_layers": listed}
    folder = variants.write(
        SOURCE, tmp_path / "release", experts, linears, {**config, "quantization_config": block}, wo_a
    )
    result = loaded(consumers, folder, "draft")
    assert result["error"] is None
    assert wrong_tensors(result) == {"mtp.0.attn.wo_a.weight"}
    findings = [finding for finding in foretold(folder).findings if finding.tensor == "mtp.0.attn.wo_a.weight"]
    assert [finding.kind for finding in findings] == ["misread"]


def without(*endings: str) -> Any:
    return lambda tensors: {name: value for name, value in tensors.items() if not name.endswith(endings)}


def transformers_names(tensors: variants.Tensors) -> variants.Tensors:
    renamed = {"head.weight": "lm_head.weight", "embed.weight": "model.embed_tokens.weight"}
    return {renamed.get(name, name): value for name, value in tensors.items()}


SILENT = {
    "a missing scale of an expert": (
        variants.block_fp8(F32), None, None, FP8, without("layers.2.ffn.experts.7.w1.scale"),
    ),
    "a missing scale of a row in INT8": (
        variants.channel_int8, variants.channel_int8, variants.plain, ALL_INT8,
        without("layers.2.ffn.experts.7.w1.weight_scale"),
    ),
    "BF16 wo_a that is not ignored": (
        variants.channel_int8, variants.channel_int8, variants.plain,
        {**ALL_INT8, "quantization_config": variants.compressed("int", ["Linear"], [])}, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("defect", SILENT)
def test_what_goes_wrong_without_a_word_is_what_the_replay_names(consumers: Path, tmp_path: Path, defect: str) -> None:
    experts, linears, wo_a, config, change = SILENT[defect]
    folder = variants.write(SOURCE, tmp_path / "release", experts, linears, config, wo_a, change)
    result = loaded(consumers, folder)
    assert result["error"] is None
    assert wrong_tensors(result) == foretold_wrong(foretold(folder)) != set()


REFUSED = {
    "no expert_dtype": (variants.block_fp8(F32), None, {"expert_dtype": None}, None),
    "names of transformers": (None, None, {}, transformers_names),
    "native scales beside compressed-tensors": (variants.channel_int8, None, ALL_INT8, None),
    "half of a fused module ignored": (
        variants.channel_int8, variants.channel_int8,
        {**ALL_INT8, "quantization_config": variants.compressed("int", ["Linear"], [r"re:.*attn\.w(o|q)_a$"])}, None,
    ),
    "no topk_method": (variants.block_fp8(F32), None, {**FP8, "topk_method": None}, None),
    "expert_dtype bf16": (variants.plain, None, {"expert_dtype": "bf16"}, None),
}  # fmt: skip


@pytest.mark.parametrize("defect", REFUSED)
def test_what_ends_in_an_error_is_what_the_replay_refuses(consumers: Path, tmp_path: Path, defect: str) -> None:
    experts, linears, config, change = REFUSED[defect]
    folder = variants.write(SOURCE, tmp_path / "release", experts, linears, config, change=change)
    assert loaded(consumers, folder)["error"]
    assert "refused" in {finding.kind for finding in foretold(folder).findings}


@pytest.mark.parametrize("experts", ["fp4", "fp8"])
def test_the_names_are_vllms_own(consumers: Path, tmp_path: Path, experts: str) -> None:
    form = None if experts == "fp4" else variants.block_fp8(F32)
    release = release_in(variants.write(SOURCE, tmp_path / "release", form, None, {"expert_dtype": experts}))
    names = [name for name in release.tensors if not name.startswith("mtp.")]
    code = (
        "import json, sys; from vllm.models.deepseek_v4.nvidia.model import _make_deepseek_v4_weights_mapper as make\n"
        f"print('RESULT', json.dumps(make({experts!r}).apply_list(json.load(sys.stdin))))"
    )
    done = subprocess.run(
        [consumers / "venv" / "bin" / "python", "-c", code],
        input=json.dumps(names), capture_output=True, text=True, check=True,
    )  # fmt: skip
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    rename = hold(load_loaders()["vllm"], release, {}).rename
    assert [rename(name) for name in names] == json.loads(line.removeprefix("RESULT "))
