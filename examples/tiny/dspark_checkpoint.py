"""Writes and reads the tiny model with DSpark's draft stages, in the layout of DeepSeek-V4-Flash-0731.

The target's shards are those of the model without the stages, byte for byte; each stage has a shard of its own.
"""

import json
import shutil
from pathlib import Path

import checkpoint
from dspark import DraftConfig, DraftStages
from model import Config, Numerics, TinyV4
from safetensors import safe_open
from safetensors.torch import save_file


def is_stage(name: str) -> bool:
    """Whether a tensor belongs to the draft stages."""
    return name.startswith("mtp.")


def load(folder: Path, numerics: Numerics) -> tuple[TinyV4, DraftStages]:
    """Target and stages of a checkpoint folder."""
    tensors = checkpoint.read_tensors(folder)
    config, draft = Config.read(folder / "config.json"), DraftConfig.read(folder / "config.json")
    target, stages = TinyV4(config, numerics, mtp=False), DraftStages(config, draft, numerics)
    checkpoint.fill(target, {name: tensor for name, tensor in tensors.items() if not is_stage(name)})
    checkpoint.fill(stages, {name: tensor for name, tensor in tensors.items() if is_stage(name)})
    return target, stages


def load_target(source: Path, config: Config, numerics: Numerics) -> TinyV4:
    """The model of a checkpoint folder without its draft stage."""
    target = TinyV4(config, numerics, mtp=False)
    tensors = checkpoint.read_tensors(source)
    checkpoint.fill(target, {name: tensor for name, tensor in tensors.items() if not is_stage(name)})
    return target


def save(stages: DraftStages, source: Path, folder: Path) -> None:
    """Write shards and index: those of `source` without its own stage, then one for each of `stages`."""
    index = json.loads((source / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    copied = sorted({file for name, file in index.items() if not is_stage(name)})
    count = len(copied) + len(stages.mtp)
    weight_map: dict[str, str] = {}
    total = 0
    for number, file in enumerate(copied, 1):
        shard = f"model-{number:05d}-of-{count:05d}.safetensors"
        shutil.copyfile(source / file, folder / shard)
        with safe_open(source / file, framework="pt") as tensors:
            names = list(tensors.keys())
            total += sum(tensors.get_tensor(name).nbytes for name in names)
        weight_map |= dict.fromkeys(names, shard)
    stored = checkpoint.native_tensors(stages)
    for stage in range(len(stages.mtp)):
        shard = f"model-{len(copied) + 1 + stage:05d}-of-{count:05d}.safetensors"
        part = {name: tensor for name, tensor in stored.items() if name.startswith(f"mtp.{stage}.")}
        save_file(part, folder / shard, metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in part.values())
        weight_map |= dict.fromkeys(part, shard)
    checkpoint.write_index(folder, weight_map, total)
