"""Checkpoints with random weights, of any dimensions, in the form DeepSeek publishes: for demos, benchmarks and tests.

The weights mean nothing; formats, names, shapes and the files are those of a real release. Every tensor is drawn from
its own name, so a checkpoint has the same bytes everywhere. Each family says which tensors share a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flagrelease.formats.formats import FP4, FP8, FP8_GROUP, block_counts, weight_of_scale
from flagrelease.model.config import FamilyConfig
from flagrelease.model.families import family_of
from flagrelease.model.tensors import Storage, TensorSpec
from flagrelease.shard.header import build_header, tensor_bytes
from flagrelease.shard.index import INDEX_NAME

_ORDER = {"I64": 0, "F32": 1, "BF16": 2, "F16": 2}  # the safetensors library puts wide dtypes first
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Stored:
    """What is random about a checkpoint beside its weights: how the quantised tensors are stored."""

    experts: Literal["fp4", "fp8"] = "fp4"
    scale_dtype: str = "F8_E8M0"  # of FP8 weights: F8_E8M0, F32, BF16 or F16; FP4 always has F8_E8M0
    scale_suffix: str = ".scale"
    fp4_dtype: str = "I8"  # of packed FP4: I8, U8 or F4


AS_PUBLISHED = Stored()


def write_shards(
    folder: Path,
    shards: Sequence[Sequence[TensorSpec]],
    config: FamilyConfig,
    document: dict[str, Any],
    stored: Stored,
    seed: int,
    holes: bool,
) -> None:
    """Write a checkpoint: a file for each of `shards`, their index, both configs, a text.

    `document` is config.json. With `holes` the data are holes in sparse files: a full-size V4-Pro to plan with takes a
    few megabytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    total = 0
    for number, specs in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = [tensor for spec in specs for tensor in stored_tensors(spec, config, stored)]
        tensors.sort(key=lambda tensor: (_ORDER.get(tensor[1], 3), tensor[0]))
        with (folder / name).open("wb") as file:
            file.write(build_header(tensors))
            for tensor, dtype, shape in tensors:
                weight_map[tensor] = name
                total += tensor_bytes(dtype, shape)
                if holes:
                    file.truncate(file.seek(tensor_bytes(dtype, shape), 1))
                else:
                    _write_random(file, tensor, dtype, tensor_bytes(dtype, shape), seed)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / INDEX_NAME, index)
    _write_json(folder / "config.json", document)
    family = family_of(config)
    native = family.native_arguments(config) | {"dtype": "fp8"}
    if family.native_scale_fmt:
        native["scale_fmt"] = "ue8m0"
    if stored.experts == "fp4":
        native["expert_dtype"] = "fp4"
    _write_json(folder / "inference" / "config.json", native)
    _write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1, "do_sample": True})
    readme = f"Random weights in the form of {family.title}, written by flagrelease. They mean nothing.\n"
    (folder / "README.md").write_text(readme, encoding="utf-8")


def stored_tensors(spec: TensorSpec, config: FamilyConfig, stored: Stored) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of what a checkpoint stores for one logical tensor: the weight, and its scale."""
    if spec.storage not in (Storage.LINEAR, Storage.EXPERT, Storage.TABLE):
        return [(spec.name, spec.storage.value.plain, spec.shape)]
    scale = spec.name.removesuffix(".weight") + stored.scale_suffix
    is_fp4 = spec.storage is Storage.EXPERT and stored.experts == "fp4"
    fmt, dtype = (FP4, stored.fp4_dtype) if is_fp4 else (FP8, FP8.weight_dtypes[0])
    if spec.storage is Storage.TABLE:
        fmt = FP8_GROUP
    blocks = block_counts(spec.shape, fmt.block(config.block_size, spec.shape[-1]) or (128, 128))
    scale_dtype = stored.scale_dtype if fmt is FP8 else fmt.scale_dtypes[0]
    return [(spec.name, dtype, fmt.stored_shape(dtype, spec.shape)), (scale, scale_dtype, blocks)]


def _write_random(file: Any, name: str, dtype: str, nbytes: int, seed: int) -> None:
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest(), "little")
    generator = np.random.Generator(np.random.Philox(key=key))
    for begin in range(0, nbytes, _CHUNK):
        file.write(_random(generator, name, dtype, min(_CHUNK, nbytes - begin)).tobytes())


def _random(generator: np.random.Generator, name: str, dtype: str, nbytes: int) -> NDArray[Any]:
    if dtype in FP4.weight_dtypes:
        return generator.integers(0, 256, nbytes, dtype=np.uint8)
    if dtype == "F8_E4M3":
        codes = generator.integers(0, 256, nbytes, dtype=np.uint8)
        codes[(codes & 0x7F) == 0x7F] = 0x38  # no NaN: 1.0
        return codes
    if dtype == "F8_E8M0":
        return generator.integers(114, 122, nbytes, dtype=np.uint8)
    if dtype == "I64":
        return generator.integers(0, 2, nbytes // 8, dtype=np.int64)
    values = generator.standard_normal(nbytes // {"F32": 4, "BF16": 2, "F16": 2}[dtype], dtype=np.float32)
    if weight_of_scale(name) is not None:
        values = np.exp2(np.rint(values * 2) - 9).astype(np.float32)
    if dtype == "F32":
        return values
    return values.astype(np.float16) if dtype == "F16" else (values.view(np.uint32) >> 16).astype(np.uint16)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
