"""`SourceTensor`: what a stored tensor means: a weight with its scale, its format and its place in the inventory.

The format follows from the stored dtype and shape, not from the name; the name only says which tensor of the inventory
it is. Nothing here reads a file: headers and config come from `source.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import FORMATS, FP4, FP8, Format
from flagrelease.model.v4.config import ModelConfig
from flagrelease.model.v4.inventory import Storage, TensorSpec, inventory
from flagrelease.shard.header import TensorMeta

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


def understand(
    stored: dict[str, TensorMeta], config: ModelConfig, config_path: Path
) -> tuple[tuple[SourceTensor, ...], list[str]]:
    """The logical tensors among `stored`, in its order, and every problem as a sentence with tensor, file and rule."""
    problems: list[str] = []
    scales, found = _pair(stored, problems)
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
    folder = config_path.parent
    problems += [f"{folder}: tensor {name!r} of this model is in no file" for name in specs if name not in found]
    problems += _disagreements(config, config_path, tensors)
    return tuple(tensors), problems


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
