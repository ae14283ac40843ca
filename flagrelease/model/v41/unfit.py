"""Why a checkpoint does not hold a DeepSeek-V4.1 model, where more can be said than which tensors are missing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath

from flagrelease.model.drafts import DRAFT_PREFIX
from flagrelease.model.unfit import other_count
from flagrelease.model.v41.config import V41Config
from flagrelease.shard.header import TensorMeta

_EXPERT = re.compile(r"(layers|mtp)\.(\d+)\.ffn\.experts\.(\d+)\.w1\.weight")
_KEYS = {"layers": "n_routed_experts", "mtp": "dspark_n_routed_experts"}


def reasons(found: Mapping[str, TensorMeta], config: V41Config, path: PurePath) -> Iterator[str]:
    """Extracts, prunes without Engram tables, and prunes whose config names other numbers of experts."""
    if all(name.startswith(DRAFT_PREFIX) for name in found):
        yield f"{path.parent}: holds the draft stages (mtp.*) alone, an extract that answers nothing without its model"
        return
    tables = [f"layers.{layer}.engram.embed.weight" for layer in config.engram_layer_ids]
    if missing := [name for name in tables if name not in found]:
        yield (
            f"{path.parent}: has no Engram tables ({', '.join(missing)}), as prunes of DeepSeek-V4.1 that were "
            f"published without these shards: the layers that read them cannot run, and nothing else in the checkpoint "
            f"replaces them. Put the shards that hold them (the last two of DeepSeek's release) beside the others"
        )
    yield from _other_experts(found, config, path)


def _other_experts(found: Mapping[str, TensorMeta], config: V41Config, path: PurePath) -> Iterator[str]:
    stored: dict[str, dict[str, set[int]]] = {kind: {} for kind in _KEYS}
    for name in found:
        if expert := _EXPERT.fullmatch(name):
            stored[expert[1]].setdefault(expert[2], set()).add(int(expert[3]))
    for kind, key in _KEYS.items():
        said = getattr(config, key)
        if (count := other_count(stored[kind].values(), said)) is not None:
            yield (
                f"{path}: {key} is {said}, but every block of {kind}.* stores experts 0 to {count - 1}: a pruned "
                f"checkpoint must say {key} {count}"
            )
