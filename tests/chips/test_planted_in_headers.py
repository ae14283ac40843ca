"""Defects planted in releases that load: the replay finds each, by tensor and rule."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
from release_headers import channel, compressed, fp8_release, modelslim, plain, releases

from flagrelease.chips.loading.release import Release
from flagrelease.chips.loading.replay import Finding, Replay, replay
from flagrelease.chips.loading.rules import load_loaders
from flagrelease.chips.loading.verdict import judge
from flagrelease.chips.stacks import get_stack
from flagrelease.shard.index import INDEX_NAME

RELEASES = releases()
SCALE = "layers.1.ffn.experts.3.w2.scale"


def replayed(loader: str, release: Release, **switches: str) -> Replay:
    return replay(load_loaders()[loader], release, switches)


def found(done: Replay, kind: str, words: str) -> list[Finding]:
    return [finding for finding in done.findings if finding.kind == kind and re.search(words, str(finding))]


def changed(
    release: Release,
    drop: str = "",
    add: dict[str, tuple[str, tuple[int, ...]]] | None = None,
    config: dict[str, Any] | None = None,
    **other: Any,
) -> Release:
    tensors = {name: entry for name, entry in release.tensors.items() if not (drop and re.search(drop, name))}
    return dataclasses.replace(
        release, tensors={**tensors, **(add or {})}, config={**release.config, **(config or {})}, **other
    )


def test_e8m0_scales_of_fp8_experts_are_misread_by_vllm_and_those_of_linears_are_not() -> None:
    done = replayed("vllm", RELEASES["fp8-e8m0"])
    assert {finding.kind for finding in done.findings} == {"misread"}
    assert {finding.tensor for finding in done.findings} == {
        name for name in RELEASES["fp8-e8m0"].tensors if ".ffn.experts." in name and name.endswith(".scale")
    }
    assert "bytes of F8_E8M0 are copied as numbers into F32, without a word" in done.findings[0].words


def test_a_single_e8m0_scale_among_float32_ones_is_found() -> None:
    one = changed(RELEASES["fp8"], add={SCALE: ("F8_E8M0", RELEASES["fp8"].tensors[SCALE][1])})
    assert [finding.tensor for finding in replayed("vllm", one).findings] == [SCALE]
    assert judge(get_stack("vllm"), one).verdict == "silently wrong"


def test_a_missing_expert_dtype_is_found_whatever_the_scales_are() -> None:
    for form in ("fp8", "fp8-e8m0"):
        config = {key: value for key, value in RELEASES[form].config.items() if key != "expert_dtype"}
        bare = dataclasses.replace(RELEASES[form], config=config)
        assert found(replayed("vllm", bare), "refused", r"experts.*F8_E4M3 .* goes into U8 .*shapes differ")
        assert judge(get_stack("vllm"), bare).verdict == "refused"
        assert judge(get_stack("sglang"), bare).verdict == "loads"


def test_a_missing_scale_of_an_expert_keeps_one_without_a_word() -> None:
    done = replayed("vllm", changed(RELEASES["fp8"], drop=re.escape(SCALE)))
    (finding,) = done.findings
    assert finding.parameter == "model.layers.1.ffn.experts.3.w2.weight_scale_inv"
    assert finding.words == "no tensor of the release fills it; it keeps 1.0 without a word"
    assert done.filled == done.parameters - 1
    assert judge(get_stack("vllm"), changed(RELEASES["fp8"], drop=re.escape(SCALE))).verdict == "silently wrong"


def test_a_missing_scale_is_a_warning_in_sglang_and_silently_wrong_all_the_same() -> None:
    release = changed(RELEASES["fp8"], drop=re.escape(SCALE))
    assert found(replayed("sglang", release), "unfilled", "it keeps whatever memory held with a warning")
    assert judge(get_stack("sglang"), release).verdict == "silently wrong"


def test_a_plain_model_that_is_incomplete_is_refused_by_vllm() -> None:
    release = changed(RELEASES["bf16"], drop=r"^layers\.2\.attn\.wo_b\.weight$")
    assert found(
        replayed("vllm", release), "refused", "layers.2.attn.wo_b.weight: no tensor .* checked in a plain model"
    )


@pytest.mark.parametrize("form", ["int8", "fp8-channel"])
def test_sglang_drops_the_scales_of_wq_a_and_wkv_unless_its_fusion_is_off(form: str) -> None:
    dropped = found(replayed("sglang", RELEASES[form]), "unfilled", r"attn\.(wq_a|wkv)\.weight_scale: .*drops the rest")
    assert len(dropped) == 2 * 4  # three layers and a draft
    assert not replayed("sglang", RELEASES[form], SGLANG_OPT_FUSE_WQA_WKV="0").findings
    assert judge(get_stack("sglang"), RELEASES[form]).environment == ("SGLANG_OPT_FUSE_WQA_WKV=0",)


@pytest.mark.parametrize("loader", ["vllm", "sglang", "hygon", "metax", "musa"])
def test_wo_a_in_int8_is_refused(loader: str) -> None:
    assert found(replayed(loader, RELEASES["int8-wo-a"]), "refused", r"layers\.1\.attn\.wo_a")


def test_wo_a_in_int8_that_is_ignored_all_the_same_has_no_parameter_for_its_scale() -> None:
    release = compressed("int", wo_a=lambda spec: channel(spec, "I8"))
    done = replayed("vllm", release)
    assert found(done, "misread", r"attn\.wo_a\.weight: the numbers of I8 are copied into BF16")
    assert found(done, "refused", r"attn\.wo_a\.weight_scale: .* no parameter .*KeyError")


def test_wo_a_in_bf16_that_is_not_ignored_is_taken_for_int8() -> None:
    done = replayed("vllm", compressed("int", ignore=[]))
    assert found(done, "misread", r"attn\.wo_a\.weight: the numbers of BF16 are copied into I8")
    assert found(done, "unfilled", r"attn\.wo_a\.weight_scale")


@pytest.mark.parametrize("listed", ["mtp.0.attn.wo_a", "model.layers.3.attn.wo_a"])
def test_wo_a_of_drafts_is_ignored_under_the_name_that_the_draft_has(listed: str) -> None:
    layers = [f"layers.{layer}.attn.wo_a" for layer in range(3)]
    done = replayed("vllm", fp8_release(wo_a=plain, ignored_layers=[*layers, listed]))
    wrong = found(done, "misread", r"mtp\.0\.attn\.wo_a\.weight")
    assert bool(wrong) == listed.startswith("mtp")


def test_transformers_names_are_refused_by_vllm() -> None:
    done = replayed("vllm", RELEASES["transformers"])
    assert found(done, "refused", r"lm_head\.weight: the stack has no parameter lm_lm_head\.weight")


def test_bf16_compressors_that_were_quantised_by_mistake_are_found() -> None:
    name = "layers.1.attn.compressor.wkv.weight"
    shape = RELEASES["fp8"].tensors[name][1]
    as_fp8 = changed(RELEASES["fp8"], add={name: ("F8_E4M3", shape), name.replace("weight", "scale"): ("F32", (2, 2))})
    done = replayed("vllm", as_fp8)
    assert found(done, "misread", rf"{re.escape(name)}: the numbers of F8_E4M3 are copied into BF16")
    assert found(done, "refused", r"compressor\.wkv\.scale: the stack has no parameter")
    assert found(replayed("sglang", as_fp8), "misread", r"compressor\.wkv\.scale: .*leaves the tensor out")
    as_int8 = changed(RELEASES["int8"], add={name: ("I8", shape), f"{name}_scale": ("F32", (shape[0], 1))})
    assert found(replayed("vllm", as_int8), "misread", rf"{re.escape(name)}: the numbers of I8 are copied into BF16")
    assert judge(get_stack("vllm-plugin-fl"), as_int8).verdict == "refused"


def test_scales_of_another_shape_are_refused_and_smaller_ones_of_experts_fill_a_part() -> None:
    linear = "layers.0.attn.wq_b.scale"
    wide = changed(RELEASES["fp8"], add={linear: ("F32", (64, 64)), SCALE: ("F32", (1, 1))})
    done = replayed("vllm", wide)
    assert found(done, "refused", rf"{re.escape(linear)}: F32 \[64, 64\] goes into F32 .*shapes differ")
    assert found(done, "misread", rf"{re.escape(SCALE)}: F32 \[1, 1\] .* fills a part of it, without a word")


def test_two_tensors_for_one_parameter_are_found() -> None:
    twice = changed(RELEASES["fp8"], add={SCALE.replace(".scale", ".weight_scale_inv"): ("F32", (2, 1))})
    assert found(replayed("vllm", twice), "misread", f"{re.escape(SCALE)} fills the same parameter")


@pytest.mark.parametrize(
    ("loader", "release", "words"),
    [
        ("vllm", fp8_release(scale_fmt=None), "no scale_fmt ue8m0: activation scales are no powers of two"),
        ("vllm", fp8_release("BF16"), None),
        ("vllm-ascend-950", releases()["native"], None),
        ("vllm-ascend", modelslim(), r"weight_scale: F32 is rounded to the parameter's dtype"),
    ],
)
def test_what_only_values_can_tell_is_a_note(loader: str, release: Release, words: str | None) -> None:
    done = replayed(loader, release)
    assert {finding.kind for finding in done.findings} <= {"note"}
    assert words is None or found(done, "note", words)


def test_float32_scales_of_linears_beside_fp4_experts_need_a_look_at_the_values() -> None:
    name = "layers.0.attn.wq_b.scale"
    release = changed(RELEASES["native"], add={name: ("F32", RELEASES["native"].tensors[name][1])})
    assert found(replayed("vllm", release), "note", rf"{re.escape(name)}: F32 is rounded up to a power of two")
    assert found(replayed("vllm-ascend-950", release), "note", rf"{re.escape(name)}: F32 only its exponent is used")


def test_an_index_of_the_usual_name_filters_the_shards_of_a_modelslim_folder_away() -> None:
    release = modelslim(extra_files=(INDEX_NAME,))
    done = replayed("vllm-ascend", release)
    assert done.filled == 0
    assert found(done, "unfilled", rf"{INDEX_NAME} is in the folder")
    assert judge(get_stack("vllm-ascend"), release).verdict == "silently wrong"


@pytest.mark.parametrize("loader", ["vllm-ascend", "sglang-npu"])
def test_a_draft_may_have_copies_of_embedding_and_head(loader: str) -> None:
    whole = modelslim()
    copies = {"mtp.0.emb.tok_emb.weight": ("BF16", (512, 256)), "mtp.0.head.weight": ("BF16", (512, 256))}
    described = {**(whole.description or {}), **dict.fromkeys(copies, "FLOAT")}
    release = changed(whole, add=copies, description=described)
    assert {finding.kind for finding in replayed(loader, release).findings} == {"note"}
    stranger = changed(whole, add={"mtp.0.emb.other.weight": ("BF16", (512, 256))})
    assert {finding.kind for finding in replayed(loader, stranger).findings} > {"note"}


def test_quantization_config_in_a_modelslim_folder_is_refused() -> None:
    release = changed(modelslim(), config={"quantization_config": RELEASES["fp8"].config["quantization_config"]})
    assert found(
        replayed("vllm-ascend", release), "refused", "names the quantisation 'fp8', which contradicts quant_model"
    )


def test_a_description_without_hc_head_fn_is_not_taken_for_deepseek_v4s() -> None:
    whole = modelslim()
    bare = {key: value for key, value in (whole.description or {}).items() if key != "hc_head_fn"}
    release = dataclasses.replace(whole, description=bare)
    assert found(replayed("vllm-ascend", release), "refused", "has no entry hc_head_fn")


def test_one_float_expert_makes_all_experts_of_its_layer_float() -> None:
    whole = modelslim()
    one = {**(whole.description or {}), "layers.1.ffn.experts.3.w1.weight": "FLOAT"}
    done = replayed("vllm-ascend", dataclasses.replace(whole, description=one))
    wrong = found(done, "misread", "the numbers of I8 are copied into BF16")
    assert {re.sub(r"experts\.\d+\.w\d", "experts", finding.tensor or "") for finding in wrong} == {
        "layers.1.ffn.experts.weight"
    }
    assert len(wrong) == 3 * 16


def test_a_description_that_calls_int8_float_or_another_kind_is_found() -> None:
    whole = modelslim()
    for word, kind, words in [
        ("FLOAT", "misread", r"attn\.wo_b\.weight: the numbers of I8 are copied into BF16"),
        ("W8A8_MXFP8", "refused", "attn.wo_b.weight is W8A8_MXFP8; it knows W8A8_DYNAMIC"),
    ]:
        described = {**(whole.description or {}), "layers.1.attn.wo_b.weight": word}
        assert found(replayed("vllm-ascend", dataclasses.replace(whole, description=described)), kind, words)


def test_targets_that_take_shared_experts_for_routed_ones_are_found() -> None:
    done = replayed("vllm", compressed("int", whole=False, targets=["re:.*experts.*"]))
    assert found(done, "misread", r"shared_experts\.w1\.weight: the numbers of BF16 are copied into I8")


@pytest.mark.parametrize(
    ("loader", "targets", "sound"),
    [
        ("vllm", r"re:.*\.experts\.\d+\.(w1|w2|w3)$", True),
        ("metax", r"re:.*\.experts\.\d+\.(w1|w2|w3)$", False),  # which asks for gate_proj, up_proj and down_proj
        ("metax", r"re:.*\.experts\.\d+\..*", True),
        ("vllm", r"re:.*\.ffn\.experts\..*", True),
        ("sglang", r"re:.*\.ffn\.experts\..*", False),  # which calls the module mlp
        ("sglang", r"re:.*\.experts\.\d+\..*", True),
    ],
)
def test_targets_must_hold_in_the_names_of_the_stack(loader: str, targets: str, sound: bool) -> None:
    done = replayed(loader, compressed("int", whole=False, targets=[targets]))
    assert (done.parameters == done.filled) == sound


@pytest.mark.parametrize(("pattern", "sound"), [(r"re:.*e_proj$", False), (r"re:.*\.e_proj$", True)])
@pytest.mark.parametrize("loader", ["metax", "sglang"])
def test_a_pattern_for_e_proj_must_not_take_gate_proj(loader: str, pattern: str, sound: bool) -> None:
    release = compressed("int", ignore=[r"re:.*attn\.wo_a$", pattern])
    several = found(replayed(loader, release), "refused", "projections of experts have several schemes")
    assert bool(several) != sound


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda group: group["weights"].update(strategy="tensor"), "weights of int8-tensor"),
        (lambda group: group["weights"].update(symmetric=False), "must be symmetric"),
        (lambda group: group["input_activations"].update(dynamic=False), "must be dynamic"),
        (lambda group: group.pop("input_activations"), "must be dynamic"),
        (lambda group: group["weights"].update(num_bits=4), "weights of int4-channel"),
    ],
)
def test_other_schemes_of_compressed_tensors_are_refused(edit: Callable[[Any], None], words: str) -> None:
    release = compressed("int")
    edit(release.config["quantization_config"]["config_groups"]["group_0"])
    assert found(replayed("vllm", release), "refused", words)


def test_a_config_without_topk_method_is_refused_by_vllm() -> None:
    release = changed(RELEASES["fp8"], config={"topk_method": None})
    assert found(
        replayed("vllm", release), "refused", "topk_method is None, not 'noaux_tc'.*no parameter for their bias"
    )
    assert not replayed("sglang", release).findings


def test_a_fused_module_of_which_half_is_ignored_is_refused() -> None:
    release = compressed("int", ignore=[r"re:.*attn\.wo_a$", r"re:.*attn\.wq_a$"])
    assert found(replayed("vllm", release), "refused", "fused_wqa_wkv is made of parts that are held differently")


def test_scales_in_deepseeks_spelling_beside_compressed_tensors_are_refused_by_vllm_and_read_by_hygon() -> None:
    whole = RELEASES["fp8-channel"]
    native = {re.sub(r"\.weight_scale$", ".scale", name): entry for name, entry in whole.tensors.items()}
    release = dataclasses.replace(whole, tensors=native)
    assert found(replayed("vllm", release), "refused", r"weight_scale_inv \(KeyError\)")
    assert not replayed("hygon", release).findings


def test_experts_that_stayed_fp4_under_the_new_config_are_found() -> None:
    name = "layers.1.ffn.experts.3.w1.weight"
    rows, columns = RELEASES["fp8"].tensors[name][1]
    release = changed(RELEASES["fp8"], add={name: ("I8", (rows, columns // 2))})
    assert found(replayed("vllm", release), "misread", rf"{re.escape(name)}: I8 .* fills a part of it")
    assert judge(get_stack("sglang"), release).verdict == "refused"


def test_a_dspark_release_is_replayed_with_its_drafts() -> None:
    done = replayed("vllm", fp8_release(dspark=True))
    assert not done.findings
    assert done.filled == done.parameters
    assert replayed("vllm", fp8_release("F8_E8M0", dspark=True)).findings[-1].parameter.startswith("model.mtp.1.")


DENSE = [
    "attn.wq_a", "attn.wq_b", "attn.wkv", "attn.wo_a", "attn.wo_b", "indexer.wq_b", "main_proj", "shared_experts.w1",
    "shared_experts.w3", "shared_experts.down_proj", "context_wkv_proj", "fused_wqa_wkv", "gate_up_proj",
]  # fmt: skip


@pytest.mark.parametrize(
    ("unlisted", "wrong"),
    [
        ("", set()),
        ("context_wkv_proj", {"model.context_wkv_proj.weight[0]", "model.context_wkv_proj.weight[1]"}),
        ("main_proj", {"model.mtp.0.main_proj.weight"}),
        # vLLM's DSpark has a configuration of its own, in which a fused module is not known to have parts
        ("fused_wqa_wkv", {f"model.mtp.{stage}.attn.{part}.weight" for stage in (0, 1) for part in ("wq_a", "wkv")}),
        ("gate_up_proj", {f"model.mtp.{s}.ffn.shared_experts.{w}.weight" for s in (0, 1) for w in ("w1", "w3")}),
    ],
)
def test_lists_must_name_what_vllms_dspark_calls_its_modules(unlisted: str, wrong: set[str]) -> None:
    ignore = [f"re:.*{re.escape(end)}$" for end in DENSE if end != unlisted]
    done = replayed("vllm", compressed("int", whole=False, targets=["Linear"], ignore=ignore, dspark=True))
    assert {finding.parameter for finding in found(done, "misread", "the numbers of BF16 are copied into I8")} == wrong
    assert bool(done.findings) == bool(wrong)


@pytest.mark.parametrize(("prefix", "sound"), [("model.", True), ("", False)])
def test_exact_lists_are_read_for_dspark_as_they_are_written(prefix: str, sound: bool) -> None:
    layers = [f"layers.{layer}.attn.wo_a" for layer in range(3)]
    drafts = [f"{prefix}layers.{layer}.attn.wo_a" for layer in (3, 4)]
    done = replayed("vllm", fp8_release(wo_a=plain, ignored_layers=[*layers, *drafts], dspark=True))
    assert bool(found(done, "misread", r"mtp\.\d\.attn\.wo_a\.weight")) != sound


def test_findings_of_one_kind_are_one_sentence() -> None:
    why = judge(get_stack("vllm"), RELEASES["fp8-e8m0"]).why
    assert why[0] == "E8M0 scales of FP8 experts are copied as bytes into float32: 2^-7 arrives as 120.0"
    assert why[1:] == (
        "layers.0.ffn.experts.0.w1.scale: the bytes of F8_E8M0 are copied as numbers into F32, without a word "
        "(and 191 more)",
    )


DRAFTS_WO_A = re.compile(r"^mtp\.\d+\.attn\.wo_a\.")


def test_wo_a_of_dspark_drafts_is_said_to_be_for_a_version_of_the_loader() -> None:
    bf16 = judge(get_stack("vllm-ascend"), modelslim(dspark=True))
    assert bf16.verdict == "loads with flags"
    assert len([why for why in bf16.why if "mtp.0.attn.wo_a.weight: BF16 is for the loader at 182b75e" in why]) == 1
    assert not [why for why in judge(get_stack("vllm-ascend"), modelslim()).why if "182b75e" in why]  # MTP has no such


def test_wo_a_of_dspark_drafts_in_fp8_is_refused_by_the_loader_that_takes_bf16() -> None:
    # as vllm-ascend's own writer stores it: FP8 with its scale, FLOAT in the description
    sound = modelslim(dspark=True)
    weights = {name for name in sound.tensors if DRAFTS_WO_A.search(name)}
    shapes = {name: sound.tensors[name][1] for name in weights}
    fp8 = {name: ("F8_E4M3", shape) for name, shape in shapes.items()}
    scales = {name.replace(".weight", ".scale"): ("F8_E8M0", (s[0] // 128, s[1] // 128)) for name, s in shapes.items()}
    release = dataclasses.replace(
        sound,
        tensors={**sound.tensors, **fp8, **scales},
        description={**(sound.description or {}), **dict.fromkeys(scales, "FLOAT")},
    )
    done = replayed("vllm-ascend", release)
    assert len(found(done, "refused", "(KeyError)")) == len(weights) == 2
    assert not found(done, "note", "182b75e")
    assert judge(get_stack("vllm-ascend"), release).verdict == "refused"
