"""What config.json says of a release's weights, against what they are: DeepSeek's and compressed-tensors' form.

A wrong word here loads as garbage or not at all, and no other check would notice. ModelSlim's description is a file of
its own (`modelslim.py`). What a list of modules says is judged by its meaning for this model, not by its spelling.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from flagrelease.formats.formats import FP8, INT8, WEIGHT_SUFFIX, Format, weight_of_scale
from flagrelease.formats.releases import RELEASE_FORMATS, Description, Kept
from flagrelease.model.config import FamilyConfig
from flagrelease.model.tensors import Storage
from flagrelease.records.manifest import Manifest, TargetRecord
from flagrelease.verify.expected import ExpectedWeight

# Plain matrices that serving stacks build as linears, so that a quantised model's config must except them.
_PLAIN_LINEARS = re.compile(r"head|.*\.(gate|wgate|compressor\.wkv|weights_proj|confidence_head\.proj)")
_ABSENT = object()


def problems(
    manifest: Manifest, document: dict[str, Any], config: FamilyConfig, weights: Sequence[ExpectedWeight]
) -> Iterator[str]:
    """Sentences about config.json of a release; `weights` are what it must hold, none if that cannot be told."""
    target, release = manifest.target, RELEASE_FORMATS[manifest.target.dtype]
    # the config of a BF16 release is silent about Engram tables that kept their codes
    quantised = any(weight.scale is not None for weight in weights if weight.spec.storage is not Storage.TABLE)
    if not weights and release.experts is not None:
        quantised = any(weight_of_scale(name) is not None for name in manifest.source.tensors)
    if quantised and release.description is Description.DEEPSEEK:
        yield from _deepseek(target, document, config, weights)
    elif quantised and release.description is Description.COMPRESSED_TENSORS:
        yield from _plain_numbers(document, ("expert_dtype",), "the weights are INT8 or FP8 with a scale for each row")
        yield from _compressed_tensors(document, release.experts, weights)
    elif quantised:
        words = "quant_model_description.json describes the weights"
        yield from _plain_numbers(document, ("quantization_config", "expert_dtype"), words)
    else:
        yield from _plain_numbers(document, ("quantization_config", "expert_dtype"), "no weight is quantised")


def _plain_numbers(document: dict[str, Any], absent: tuple[str, ...], why: str) -> Iterator[str]:
    for key in absent:
        if key in document:
            yield f"has {key}, but {why}"
    said = [document[key] for key in ("dtype", "torch_dtype") if key in document]
    if not said or set(said) != {"bfloat16"}:
        yield f"dtype and torch_dtype say {said}, the weights are bfloat16"


def _deepseek(
    target: TargetRecord, document: dict[str, Any], config: FamilyConfig, weights: Sequence[ExpectedWeight]
) -> Iterator[str]:
    release = RELEASE_FORMATS[target.dtype]
    if config.block_quantisation is None:
        yield "has no quantization_config with blocks, but weights are FP8"
    experts = config.declared_expert_dtype
    if experts is None or (release.experts is FP8 and experts != "fp8"):
        yield f"expert_dtype is {experts!r} in a release of {target.dtype}"
    elif target.layout == "hf" and release.f32_scales and document.get("expert_dtype") != "fp8":
        yield "expert_dtype is not at top level, the only place where vLLM looks for it"
    if config.block_quantisation is not None and config.block_quantisation.expert_dtype not in (None, experts):
        yield "expert_dtype in quantization_config is not the one at top level"
    if target.layout == "hf":
        listed = _names(_block(document).get("ignored_layers"))
        decoded = [w for w in weights if w.source_scale is not None and w.scale is None]
        for module in (module for weight in decoded for module in _loader_names(weight, config)):
            if module not in listed:
                yield f"quantization_config.ignored_layers lacks {module!r}, whose weight is BF16"
        for weight in weights:
            if weight.scale is not None and module_of(weight) in listed:
                yield f"quantization_config.ignored_layers has {module_of(weight)!r}, whose weight is quantised"


def _loader_names(weight: ExpectedWeight, config: FamilyConfig) -> tuple[str, ...]:
    """Names under which a loader may look for a module: vLLM builds draft stages behind the last layer."""
    module = module_of(weight)
    stage = re.match(r"mtp\.(\d+)\.", module)
    if stage is None:
        return (module,)
    return module, f"model.layers.{config.num_hidden_layers + int(stage[1])}.{module[stage.end() :]}"


def module_of(weight: ExpectedWeight) -> str:
    """The name of the module that a weight belongs to."""
    return weight.spec.name.removesuffix(WEIGHT_SUFFIX)


def _compressed_tensors(
    document: dict[str, Any], fmt: Format | Kept | None, weights: Sequence[ExpectedWeight]
) -> Iterator[str]:
    block = _block(document)
    assert isinstance(fmt, Format), "such a release has one stored format, and its experts have it"
    yield from _differences("quantization_config", block, _compression(fmt))
    groups = block.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        yield "quantization_config.config_groups does not have one group, and all weights are quantised alike"
    else:
        for name, group in groups.items():
            at = f"quantization_config.config_groups.{name}"
            yield from _differences(at, group if isinstance(group, dict) else {}, _group(fmt))
    yield from _ignored(_names(block.get("ignore")), weights)


def _compression(fmt: Format) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if fmt is INT8 else "float-quantized",
        "quantization_status": "compressed",
    }


def _group(fmt: Format) -> dict[str, Any]:
    numbers = {"num_bits": 8, "type": "int" if fmt is INT8 else "float", "symmetric": True}
    return {
        "targets": ["Linear"],
        "weights": numbers | {"strategy": "channel", "dynamic": False},
        "input_activations": numbers | {"strategy": "token", "dynamic": True},
    }


def _differences(at: str, found: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    for key, value in wanted.items():
        said = found.get(key, _ABSENT)
        if isinstance(value, dict) and isinstance(said, dict):
            yield from _differences(f"{at}.{key}", said, value)
        elif said != value:
            yield f"{at}.{key} is {'absent' if said is _ABSENT else repr(said)}, it must be {value!r}"


def _ignored(ignore: Sequence[str], weights: Sequence[ExpectedWeight]) -> Iterator[str]:
    exact = {entry for entry in ignore if not entry.startswith("re:")}
    try:
        patterns = [re.compile(entry.removeprefix("re:")) for entry in ignore if entry.startswith("re:")]
    except re.error as error:
        yield f"quantization_config.ignore: {error.pattern!r} is no regular expression ({error})"
        return
    for weight in weights:
        module = module_of(weight)
        # vLLM matches a pattern with its own name of the module
        names = (module, f"model.{module}")
        matched = module in exact or all(any(p.match(name) for p in patterns) for name in names)
        if weight.scale is not None and (matched or any(p.match(name) for p in patterns for name in names)):
            yield f"quantization_config.ignore matches {module!r}, whose weight is quantised"
        elif weight.scale is None and not matched and _is_linear(weight):
            yield f"quantization_config.ignore does not match {module!r}, whose weight is BF16"


def _is_linear(weight: ExpectedWeight) -> bool:
    may_be_quantised = weight.spec.storage in (Storage.LINEAR, Storage.EXPERT)
    return may_be_quantised or _PLAIN_LINEARS.fullmatch(module_of(weight)) is not None


def _block(document: dict[str, Any]) -> dict[str, Any]:
    block = document.get("quantization_config")
    return block if isinstance(block, dict) else {}


def _names(value: Any) -> tuple[str, ...]:
    """A list of names; anything else names nothing."""
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()
