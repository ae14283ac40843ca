"""The files of a release that are not tensors: configs rewritten for what the weights now are, and companions.

A BF16 folder whose config still says FP8 is what users of hand-made releases suffer from most; so the two configs are
rewritten from what the release holds, and the companions of the source (source/companions.py) come along as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flagrelease.convert.planning.descriptions import (
    compressed_tensors_config,
    ignored_layers,
    modelslim_description,
)
from flagrelease.convert.planning.parts import Part
from flagrelease.convert.planning.target import Action, Target
from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import FP8
from flagrelease.formats.releases import MODELSLIM_DESCRIPTION, Description
from flagrelease.model.families import family_of
from flagrelease.model.stored import StoredWeight
from flagrelease.shard.impostors import impostor
from flagrelease.source.companions import CONFIG_NAME, NATIVE_CONFIG_NAME
from flagrelease.source.source import Source
from flagrelease.strict_json import parse_json


@dataclass(frozen=True, slots=True)
class Documents:
    """Files to write (relative path -> bytes) and files to copy (relative path, here and in the source -> size)."""

    written: dict[str, bytes]
    copied: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(map(len, self.written.values())) + sum(self.copied.values())

    def digests(self) -> list[list[str | int]]:
        """What identifies them in a plan: the content of what is written, path and size of what is copied."""
        written: list[list[str | int]] = [[n, hashlib.sha256(b).hexdigest()] for n, b in sorted(self.written.items())]
        return written + [[name, size] for name, size in sorted(self.copied.items())]


def make_documents(
    source: Source,
    target: Target,
    indexes: Mapping[str, tuple[dict[str, str], int]],
    stored: Mapping[str, tuple[StoredWeight, Action, Part]],
) -> Documents:
    """The documents of a release.

    Args:
        source: the checkpoint.
        target: the release.
        indexes: name of an index file -> weight map and total size.
        stored: name of each tensor of the release -> where it comes from.

    Raises:
        CheckpointError: inference/config.json is not a JSON object.
    """
    kind = target.release.description
    written = {CONFIG_NAME: _json(release_config(source, target, stored))}
    if kind is Description.DEEPSEEK:  # DeepSeek's own code loads no other form
        written[NATIVE_CONFIG_NAME] = _json(native_config(source, target))
    if kind is Description.MODELSLIM:
        written[MODELSLIM_DESCRIPTION] = _json(modelslim_description(target, stored))
    for name, (weight_map, total) in indexes.items():
        written[name] = _json({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    return Documents(written, source.companions.taken)


def release_config(
    source: Source, target: Target, stored: Mapping[str, tuple[StoredWeight, Action, Part]]
) -> dict[str, Any]:
    """`config.json` of the release: the source's, saying what the weights now are."""
    config = json.loads(json.dumps(source.raw_config))
    quantization = config.get("quantization_config")
    config.pop("expert_dtype", None)
    inside = isinstance(quantization, dict) and quantization.pop("expert_dtype", None) is not None
    if target.dtype == "bf16" or target.release.description is not Description.DEEPSEEK:
        config.pop("quantization_config", None)
        config["dtype" if "dtype" in config else "torch_dtype"] = "bfloat16"
        if target.release.description is Description.COMPRESSED_TENSORS:
            config["quantization_config"] = compressed_tensors_config(target, stored)
        return dict(config)
    experts = source.expert_format
    if experts is not None:  # BF16 experts beside FP8 weights are meant by saying nothing
        fp8 = target.release.experts is FP8
        # vLLM reads FP8 experts from the top level only, and takes a missing key for FP4; DeepSeek-V4.1 says it inside
        if inside:
            quantization["expert_dtype"] = "fp8" if fp8 else experts.name
        if fp8 or not inside:
            config["expert_dtype"] = "fp8" if fp8 else experts.name
    if target.dtype == "fp8-bf16-wo-a":
        quantization["ignored_layers"] = ignored_layers(source.config, stored)
    return dict(config)


def native_config(source: Source, target: Target) -> dict[str, Any]:
    """`inference/config.json`: DeepSeek's ModelArgs for these weights, over what the source's own file says.

    Its `expert_dtype` knows only fp4; FP8 and BF16 experts are meant by leaving it out.
    """
    family = family_of(source.config)
    path = source.root / NATIVE_CONFIG_NAME
    config: dict[str, Any] = {}
    if (content := source.files.find(NATIVE_CONFIG_NAME)) is not None:
        try:
            config = parse_json(content)
        except ValueError as error:
            raise CheckpointError(f"{path}: {impostor(content, path) or f'not valid JSON ({error})'}") from error
        if not isinstance(config, dict):
            raise CheckpointError(f"{path}: a JSON object is expected")
    for key in ("dtype", "scale_fmt", "expert_dtype"):
        config.pop(key, None)
    if source.config.n_mtp_layers == 0:
        config = family.without_drafts(config, source.config.num_hidden_layers)
    config |= family.native_arguments(source.config)
    if target.dtype == "bf16":
        return config | {"dtype": "bf16"}
    quantization = source.config.block_quantisation
    config["dtype"] = "fp8"
    if family.native_scale_fmt:
        config["scale_fmt"] = quantization.scale_fmt if quantization else None
    if target.dtype == "native" and source.expert_format is not None and source.expert_format.name == "fp4":
        config["expert_dtype"] = "fp4"
    return config


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2, ensure_ascii=False).encode("utf-8") + b"\n"
