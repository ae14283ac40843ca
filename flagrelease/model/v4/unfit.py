"""Why a checkpoint does not hold a DeepSeek-V4 model, where more can be said than which tensors are missing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath

from flagrelease.model.unfit import hint_of_transformers, other_count
from flagrelease.model.v4.config import ModelConfig
from flagrelease.shard.header import TensorMeta

_EXPERT = re.compile(r"(.+)\.ffn\.experts\.(\d+)\.w1\.weight")
_OF_VISION = ("vision.", "aligner.", "image_")


def reasons(found: Mapping[str, TensorMeta], config: ModelConfig, path: PurePath) -> Iterator[str]:
    """Where every block stores as many experts as every other one, but not those that the config names."""
    stored: dict[str, set[int]] = {}
    for name in found:
        if expert := _EXPERT.match(name):
            stored.setdefault(expert[1], set()).add(int(expert[2]))
    if (count := other_count(stored.values(), config.n_routed_experts)) is not None:
        yield (
            f"{path}: n_routed_experts is {config.n_routed_experts}, but every block stores experts 0 to {count - 1}: "
            f"a pruned checkpoint must say n_routed_experts {count}"
        )


def naming_hint(name: str) -> str:
    """Why a tensor of this name may be in a checkpoint, though no DeepSeek-V4 model has one."""
    if name.startswith(_OF_VISION) or name.endswith(".gate.bias_vl"):
        return " (a model that sees, such as DeepSeek-V4-Flash-Vision-Exp; this tool converts those that read text)"
    return hint_of_transformers(name)
