"""Headers, config.json and description of releases in every form, made from the model's inventory and the fact sheet.

Nothing of the converter is used: names, dtypes and shapes are those of `serving-stacks.md`, sections 1 to 5.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from flagrelease.chips.loading.release import Release
from flagrelease.model.tensors import Storage, TensorSpec
from flagrelease.model.v4.config import parse_config
from flagrelease.model.v4.inventory import inventory
from flagrelease.model.v4.synthetic import tiny_config

Entry = tuple[str, str, tuple[int, ...]]
DSPARK = {
    "dspark_block_size": 7, "dspark_noise_token_id": 2, "dspark_target_layer_ids": [0, 1], "dspark_markov_rank": 32,
    "compress_ratios": [0, 4, 128, 0, 0],
}  # fmt: skip
WO_A = re.compile(r"\.attn\.wo_a\.weight$")
# Matches the experts of every stack, whatever it calls the module and the projections, and no shared expert
EXPERTS = [r"re:.*\.experts\.\d+\..*"]
FLOAT_ON_ASCEND = re.compile(r"\.attn\.(wq_a|wkv|wo_a)\.weight$")


def block_fp8(spec: TensorSpec, scale: str) -> Iterator[Entry]:
    rows, columns = spec.shape
    yield spec.name, "F8_E4M3", spec.shape
    yield spec.name.replace(".weight", ".scale"), scale, (-(-rows // 128), -(-columns // 128))


def packed_fp4(spec: TensorSpec) -> Iterator[Entry]:
    rows, columns = spec.shape
    yield spec.name, "I8", (rows, columns // 2)
    yield spec.name.replace(".weight", ".scale"), "F8_E8M0", (rows, columns // 32)


def channel(spec: TensorSpec, dtype: str) -> Iterator[Entry]:
    yield spec.name, dtype, spec.shape
    yield f"{spec.name}_scale", "F32", (spec.shape[0], 1)


def plain(spec: TensorSpec) -> Iterator[Entry]:
    yield spec.name, "BF16", spec.shape


def modelslim_w8a8(spec: TensorSpec) -> Iterator[Entry]:
    yield from channel(spec, "I8")
    yield f"{spec.name}_offset", "F32", (spec.shape[0], 1)


def modelslim_w4a8(spec: TensorSpec) -> Iterator[Entry]:
    rows, columns = spec.shape
    yield spec.name, "I8", (rows // 2, columns)
    yield f"{spec.name}_scale", "F32", (rows, 1)
    yield f"{spec.name}_offset", "F32", (rows, 1)
    yield spec.name.replace(".weight", ".scale_bias"), "F32", (rows, 16 if ".w2." in spec.name else 1)


def modelslim_mxfp8(spec: TensorSpec) -> Iterator[Entry]:
    yield spec.name, "F8_E4M3", spec.shape
    yield f"{spec.name}_scale", "U8", (spec.shape[0], spec.shape[1] // 32)


def nvfp4(spec: TensorSpec) -> Iterator[Entry]:
    rows, columns = spec.shape
    yield spec.name, "U8", (rows, columns // 2)
    yield f"{spec.name}_scale", "F8_E4M3", (rows, columns // 16)
    yield f"{spec.name}_scale_2", "F32", ()


def quantised(
    experts: Callable[[TensorSpec], Iterator[Entry]],
    linears: Callable[[TensorSpec], Iterator[Entry]],
    wo_a: Callable[[TensorSpec], Iterator[Entry]] | None = None,
    changes: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...]]]]:
    config = tiny_config(topk_method="noaux_tc", **(changes or {}))
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for spec in inventory(parse_config(config, "the test's config.json")).values():
        if spec.storage is Storage.EXPERT:
            entries = experts(spec)
        elif spec.storage is Storage.LINEAR:
            entries = (wo_a if wo_a and WO_A.search(spec.name) else linears)(spec)
        else:
            entries = iter([(spec.name, spec.storage.value.plain, spec.shape)])
        tensors |= {name: (dtype, shape) for name, dtype, shape in entries}
    return config, tensors


def groups(kind: str, targets: list[str], ignore: list[str]) -> dict[str, Any]:
    numbers = {"num_bits": 8, "type": kind, "symmetric": True}
    shape = "int-quantized" if kind == "int" else "float-quantized"
    group = {
        "targets": targets,
        "format": shape,
        "weights": {**numbers, "strategy": "channel", "dynamic": False},
        "input_activations": {**numbers, "strategy": "token", "dynamic": True},
    }
    return {
        "quant_method": "compressed-tensors", "format": shape, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ignore,
    }  # fmt: skip


def fp8_release(scale: str = "F32", dspark: bool = False, wo_a: Any = None, **keys: Any) -> Release:
    config, tensors = quantised(
        lambda spec: block_fp8(spec, scale),
        lambda spec: block_fp8(spec, "F8_E8M0"),
        wo_a,
        {"expert_dtype": "fp8", **(DSPARK if dspark else {})},
    )
    config["quantization_config"] |= keys
    return Release(config, None, tensors)


def compressed(
    kind: str,
    whole: bool = True,
    wo_a: Any = plain,
    ignore: list[str] | None = None,
    targets: list[str] | None = None,
    dspark: bool = False,
) -> Release:
    dtype = "I8" if kind == "int" else "F8_E4M3"
    config, tensors = quantised(
        lambda spec: channel(spec, dtype),
        (lambda spec: channel(spec, dtype)) if whole else plain,
        wo_a,
        DSPARK if dspark else None,
    )
    del config["expert_dtype"]
    if whole:
        config["quantization_config"] = groups(kind, ["Linear"], [r"re:.*attn\.wo_a$"] if ignore is None else ignore)
    else:
        config["quantization_config"] = groups(kind, EXPERTS if targets is None else targets, ignore or [])
    return Release(config, None, tensors)


def described(tensors: dict[str, tuple[str, tuple[int, ...]]], words: dict[str, str]) -> dict[str, str]:
    """A description: for each tensor its kind, by the dtype of the weight that it belongs to."""
    kinds = {}
    for name in tensors:
        weight = re.sub(r"\.(weight_scale|weight_offset|scale_bias)$", ".weight", name)
        dtype = tensors[weight][0] if weight in tensors else ""
        kinds[name] = words.get(dtype, "FLOAT")
    return {**kinds, "version": "1.0.0", "model_quant_type": "W8A8_DYNAMIC"}


def modelslim(kind: str = "w8a8", extra_files: tuple[str, ...] = (), dspark: bool = False) -> Release:
    if kind == "mxfp8":
        config, tensors = quantised(modelslim_mxfp8, modelslim_mxfp8, plain)
        words = {"F8_E4M3": "W8A8_MXFP8"}
    else:
        experts = modelslim_w8a8 if kind == "w8a8" else modelslim_w4a8
        config, tensors = quantised(
            experts,
            lambda spec: plain(spec) if FLOAT_ON_ASCEND.search(spec.name) else modelslim_w8a8(spec),
            changes=DSPARK if dspark else None,
        )
        words = {"I8": "W8A8_DYNAMIC"}
    del config["quantization_config"], config["expert_dtype"]
    description = described(tensors, words)
    if kind == "w4a8":
        description |= {name: "W4A8_DYNAMIC" for name in tensors if ".ffn.experts." in name}
    files = {
        "quant_model_weights-00001-of-00001.safetensors",
        "quant_model_weights.safetensors.index.json",
        *extra_files,
    }
    return Release(config, description, tensors, frozenset(files))


def without_quantisation(experts: Any, linears: Any) -> Release:
    config, tensors = quantised(experts, linears)
    del config["quantization_config"], config["expert_dtype"]
    return Release(config, None, tensors)


def releases() -> dict[str, Release]:
    """One release of each form that `chips/stacks.yaml` knows."""
    native_config, native = quantised(packed_fp4, lambda spec: block_fp8(spec, "F8_E8M0"))
    no_dtype = fp8_release()
    mixed_config, mixed = quantised(plain, lambda spec: block_fp8(spec, "F8_E8M0"))
    mixed_config["expert_dtype"] = "bf16"
    nv_config, nv = quantised(nvfp4, lambda spec: block_fp8(spec, "F8_E8M0"))
    nv_config["quantization_config"]["moe_quant_algo"] = "NVFP4"
    layers = native_config["num_hidden_layers"]
    wo_a = [f"layers.{layer}.attn.wo_a" for layer in range(layers + 1)] + ["mtp.0.attn.wo_a"]
    bf16 = without_quantisation(plain, plain)
    renamed = {"head.weight": "lm_head.weight", "embed.weight": "model.embed_tokens.weight"}
    transformers = {renamed.get(name, f"model.{name}"): entry for name, entry in bf16.tensors.items()}
    return {
        "native": Release(native_config, None, native),
        "fp8-e8m0": fp8_release("F8_E8M0"),
        "fp8": fp8_release(),
        "fp8-no-expert-dtype": Release(
            {k: v for k, v in no_dtype.config.items() if k != "expert_dtype"}, None, no_dtype.tensors
        ),
        "fp8-bf16-wo-a": fp8_release(wo_a=plain, ignored_layers=wo_a),
        "bf16": bf16,
        "fp8-bf16-experts": Release(mixed_config, None, mixed),
        "int8": compressed("int"),
        "int8-experts": compressed("int", whole=False),
        "int8-wo-a": compressed("int", wo_a=lambda spec: channel(spec, "I8"), ignore=[]),
        "fp8-channel": compressed("float"),
        "w8a8-ascend": modelslim(),
        "w4a8-ascend": modelslim("w4a8"),
        "mxfp8": modelslim("mxfp8"),
        "nvfp4": Release(nv_config, None, nv),
        "transformers": Release(bf16.config, None, transformers),
    }
