"""How a release says what its weights are, in the words of those who load it: compressed-tensors, ModelSlim, vLLM.

docs/stacks.md has the sources. A list of modules that stay BF16 must name every linear that a stack would otherwise
build as quantised, under each of the names that stacks have for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from flagrelease.convert.planning.parts import Part
from flagrelease.convert.planning.target import Action, Target
from flagrelease.formats.formats import INT8, MXFP8, WEIGHT_SUFFIX
from flagrelease.model.config import FamilyConfig
from flagrelease.model.stored import StoredWeight
from flagrelease.model.tensors import Storage

Stored = Mapping[str, tuple[StoredWeight, Action, Part]]

_IN_A_LAYER = re.compile(r"(?:layers|mtp)\.\d+\.(?:ffn\.experts\.\d+\.)?")
# Linears that DeepSeek never quantises, and that stacks build like the others.
_ALWAYS_PLAIN = (
    "compressor.wkv", "compressor.wgate", "indexer.weights_proj", "ffn.gate", "head", "embed", "confidence_head.proj",
    "markov_head.markov_w1", "markov_head.markov_w2",
)  # fmt: skip
# vLLM and SGLang build these out of several of DeepSeek's, and look for the joint name, or for names of their own.
_JOINED = {
    "attn.wq_a": ("attn.fused_wqa_wkv",),
    "attn.wkv": ("context_wkv_proj",),
    "compressor.wkv": ("compressor.fused_wkv_wgate",),
    "ffn.shared_experts.w1": ("shared_experts.gate_up_proj", "shared_experts.gate_proj", "shared_experts.up_proj"),
    "ffn.shared_experts.w2": ("shared_experts.down_proj",),
    "ffn.gate": ("mlp.gate",),
}


def compressed_tensors_config(target: Target, stored: Stored) -> dict[str, Any]:
    """`quantization_config` for weights and inputs of 8 bits: a scale for each row, a scale for each token at run time.

    All linears are targets, experts too, but for those in `ignore`. Its entries are regular expressions anchored at the
    end, since stacks put prefixes of their own before a name. What ends in a name is no match unless a dot or _ stands
    before it (lm_head): some stacks call an expert's w1 gate_proj, and MTP has an e_proj.
    """
    number = "int" if target.release.experts is INT8 else "float"
    scheme = {"num_bits": 8, "type": number, "symmetric": True}
    layout = "int-quantized" if number == "int" else "float-quantized"
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {
            "w8a8_channel_token": {
                "targets": ["Linear"],
                "format": layout,
                "weights": scheme | {"strategy": "channel", "dynamic": False},
                "input_activations": scheme | {"strategy": "token", "dynamic": True},
            }
        },
        "ignore": ["re:(.*[._])?" + re.escape(name) + "$" for name in _plain_linears(stored)],
    }


def _plain_linears(stored: Stored) -> list[str]:
    """Ends of the names of all linears that are BF16, those that stacks join included.

    A name stands whole where other layers have the same linear quantised.
    """
    plain, quantised = dict[str, list[str]](), set[str]()
    for tensor, _, part in stored.values():
        if part.role == "weight" and tensor.spec.storage in (Storage.LINEAR, Storage.EXPERT):
            name = part.name.removesuffix(WEIGHT_SUFFIX)
            end = _IN_A_LAYER.sub("", name)
            if part.dtype == "BF16":
                plain.setdefault(end, []).append(name)
            else:
                quantised.add(end)
    ends = plain.keys() - quantised | set(_ALWAYS_PLAIN)
    whole = {name for end in plain.keys() & quantised for name in plain[end]}
    return sorted(ends | whole | {name for end in ends for name in _JOINED.get(end, ())})


def ignored_layers(config: FamilyConfig, stored: Stored) -> list[str]:
    """vLLM's and SGLang's `ignored_layers`: modules whose quantised source became BF16.

    The names are exact, with and without the prefix `model.`. vLLM counts the stages of the draft model behind the
    layers.
    """
    names = [
        part.name.removesuffix(WEIGHT_SUFFIX)
        for tensor, action, part in stored.values()
        if action is Action.DECODE and tensor.format is not None
    ]
    behind = [
        re.sub(r"^mtp\.(\d+)", lambda found: f"layers.{config.num_hidden_layers + int(found[1])}", name)
        for name in names
    ]
    return sorted(_with_prefix({*names, *behind}))


def _with_prefix(names: Iterable[str]) -> set[str]:
    return {form for name in names for form in (name, f"model.{name}")}


def modelslim_description(target: Target, stored: Stored) -> dict[str, Any]:
    """`quant_model_description.json`: what each tensor is, one entry a tensor, as vllm-ascend reads it."""
    kind = "W8A8_MXFP8" if target.release.experts is MXFP8 else "W8A8_DYNAMIC"
    quantised = {tensor.spec.name for tensor, _, part in stored.values() if part.role != "weight"}
    entries = {name: kind if tensor.spec.name in quantised else "FLOAT" for name, (tensor, _, part) in stored.items()}
    return {"version": "1.0.0", "model_quant_type": kind, "group_size": 0, "metadata": {}} | dict(
        sorted(entries.items())
    )
