"""`Source`: a checkpoint understood: every weight with its scale, format and place in the model's inventory.

What a tensor is follows from its stored dtype and shape, not from its name; the name only says which logical tensor of
the inventory it is. Everything that headers, index and config can show to be wrong is found here, before any byte of
data is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import FORMATS, FP4, FP8, Format
from flagrelease.model.v4.config import ModelConfig, read_config
from flagrelease.model.v4.inventory import Storage, TensorSpec, inventory
from flagrelease.shard.header import TensorMeta
from flagrelease.shard.index import CheckpointIndex, survey

SCALE_SUFFIXES = (".scale", ".weight_scale_inv")
_PLAIN = {Storage.BF16: "BF16", Storage.F32: "F32", Storage.I64: "I64", Storage.LINEAR: "BF16", Storage.EXPERT: "BF16"}


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One logical tensor: stored weight, and for a quantised one its scale, format and block (rows, elements)."""

    spec: TensorSpec
    weight: TensorMeta
    scale: TensorMeta | None = None
    format: Format | None = None
    block: tuple[int, int] = (1, 1)


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint whose headers, index and config agree. Tensors are in the order of files and offsets."""

    folder: Path
    config: ModelConfig
    raw_config: dict[str, Any] = field(repr=False)
    config_sha256: str
    index: CheckpointIndex
    tensors: tuple[SourceTensor, ...] = field(repr=False)  # V4-Pro has 145,000: a traceback with them takes minutes

    @property
    def expert_format(self) -> Format | None:
        """The format of the routed experts; None if they are BF16, or if a surveyed source has none."""
        return next((t.format for t in self.tensors if t.spec.storage is Storage.EXPERT), None)


def read_source(folder: Path) -> Source:
    """Understand the checkpoint in `folder`.

    Raises:
        CheckpointError: the first problem that `survey_source` lists.
    """
    source, problems = survey_source(folder)
    if problems:
        raise CheckpointError(problems[0])
    return source


def survey_source(folder: Path) -> tuple[Source, list[str]]:
    """Understand what can be understood, and list every problem as a sentence.

    Raises:
        CheckpointError: nothing can be said: no config.json, no tensors, a header that breaks the format.
    """
    config_path = folder / "config.json"
    if folder.is_dir() and not config_path.is_file():
        raise CheckpointError(f"{config_path}: not found; a checkpoint folder needs its config.json")
    index, problems = survey(folder)
    config, raw = read_config(config_path)
    scales, found = _pair(index.tensors, problems)
    tensors = []
    specs = inventory(config)
    for name, weight in found.items():
        if name not in specs:
            problems.append(f"{weight.file}: tensor {name!r} is not part of this model{_naming_hint(name)}")
            continue
        try:
            tensors.append(_understand(specs[name], weight, scales.get(name), config))
        except CheckpointError as error:
            problems.append(str(error))
    problems += [f"{folder}: tensor {name!r} of this model is in no file" for name in specs if name not in found]
    problems += _disagreements(config, config_path, tensors)
    digest = hashlib.sha256(config_path.read_bytes()).hexdigest()
    return Source(folder, config, raw, digest, index, tuple(tensors)), problems


def _pair(stored: dict[str, TensorMeta], problems: list[str]) -> tuple[dict[str, TensorMeta], dict[str, TensorMeta]]:
    """Split stored tensors into scales by the name of their weight, and all others by their own name."""
    scales: dict[str, TensorMeta] = {}
    others: dict[str, TensorMeta] = {}
    for name, meta in stored.items():
        suffix = next((s for s in SCALE_SUFFIXES if name.endswith(s)), None)
        if suffix is None:
            others[name] = meta
            continue
        weight = name.removesuffix(suffix) + ".weight"
        if weight not in stored:
            problems.append(f"{meta.file}: scale {name!r} has no weight {weight!r}")
        elif weight in scales:
            problems.append(f"{meta.file}: weight {weight!r} has two scales, {scales[weight].name!r} and {name!r}")
        else:
            scales[weight] = meta
    return scales, others


def _understand(spec: TensorSpec, weight: TensorMeta, scale: TensorMeta | None, config: ModelConfig) -> SourceTensor:
    where = f"{weight.file}: tensor {spec.name!r}"
    fmt = next((f for f in FORMATS if weight.dtype in f.weight_dtypes), None)
    if fmt is None:
        if scale is not None:
            raise CheckpointError(
                f"{where}: {weight.dtype} has a scale ({scale.name!r}), but is not a quantised format"
            )
        if weight.dtype != _PLAIN[spec.storage]:
            raise CheckpointError(
                f"{where}: stored as {weight.dtype}; {_PLAIN[spec.storage]} or a quantised format is "
                f"expected for {spec.storage.value}"
            )
        _require_shape(where, weight.shape, spec.shape)
        return SourceTensor(spec, weight)
    if spec.storage not in (Storage.LINEAR, Storage.EXPERT):
        raise CheckpointError(f"{where}: stored as {weight.dtype}; this tensor is {spec.storage.value}")
    if scale is None:
        expected = spec.name.removesuffix(".weight") + ".scale"
        raise CheckpointError(f"{where}: {weight.dtype} without a scale; {expected!r} is in no file")
    logical = (*weight.shape[:-1], weight.shape[-1] * fmt.elements_per_byte) if weight.shape else ()
    _require_shape(where, logical, spec.shape)
    block = fmt.block(config.block_size)
    if block is None:
        raise CheckpointError(f"{where}: {fmt.name} needs quantization_config.weight_block_size in config.json")
    if scale.dtype not in fmt.scale_dtypes:
        raise CheckpointError(
            f"{scale.file}: scale {scale.name!r}: dtype {scale.dtype}; {fmt.name} has scales of "
            f"{', '.join(sorted(fmt.scale_dtypes))}"
        )
    blocks = tuple(-(-n // b) for n, b in zip(logical, block, strict=True))
    if scale.shape != blocks:
        raise CheckpointError(
            f"{scale.file}: scale {scale.name!r}: shape {list(scale.shape)}; {fmt.name} {list(logical)} "
            f"in blocks of {list(block)} has {list(blocks)}"
        )
    return SourceTensor(spec, weight, scale, fmt, block)


def _require_shape(where: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise CheckpointError(f"{where}: shape {list(shape)}; config.json gives {list(expected)}")


def _naming_hint(name: str) -> str:
    if name.startswith("model."):
        return " (a name of transformers; DeepSeek's own names have no 'model.' prefix)"
    return ""


def _disagreements(config: ModelConfig, path: Path, tensors: list[SourceTensor]) -> Iterator[str]:
    stored = {t.format.name if t.format else "bf16" for t in tensors if t.spec.storage is Storage.EXPERT}
    if len(stored) > 1:
        yield f"{path.parent}: routed experts are stored in several formats: {', '.join(sorted(stored))}"
    declared = config.declared_expert_dtype
    if declared is not None and stored and stored != {declared}:
        yield f"{path}: expert_dtype is {declared}, the experts are stored as {', '.join(sorted(stored))}"
    quantised = any(t.format in (FP4, FP8) for t in tensors)
    if config.quantization_config is not None and tensors and not quantised:
        yield f"{path}: has a quantization_config, but no tensor is quantised"
