"""`StoredWeight`: what a stored tensor of a checkpoint means: a weight with its scale and its format.

The format follows from the stored dtype and shape, not from the name; the name only says which tensor of the inventory
it is. Nothing here reads a file: headers and config come from the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import Format
from flagrelease.formats.match import differing_experts, match, pair_scales
from flagrelease.model.config import FamilyConfig
from flagrelease.model.families import family_of
from flagrelease.model.tensors import Storage, TensorSpec
from flagrelease.shard.header import TensorMeta


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One logical tensor: stored weight, and for a quantised one its scale, format and block (rows, elements).

    `offset`: zero points beside the scale, as ModelSlim stores them; whoever reads the weight must find them all zero.
    `tile`: (rows, columns) that share a scale if FP4 is repacked as FP8.
    """

    spec: TensorSpec
    weight: TensorMeta
    scale: TensorMeta | None = None
    format: Format | None = None
    block: tuple[int, int] = (1, 1)
    offset: TensorMeta | None = None
    tile: tuple[int, int] = (1, 1)


def understand(
    stored: Mapping[str, TensorMeta],
    config: FamilyConfig,
    config_path: PurePath,
    parts: Mapping[str, tuple[TensorSpec, tuple[int, ...]]] | None = None,
) -> tuple[tuple[StoredWeight, ...], list[str]]:
    """The logical tensors among `stored`, in its order, and every problem as a sentence with tensor, file and rule.

    Args:
        stored: header entries by name.
        config: of the model.
        config_path: names it in sentences.
        parts: what the files must hold, with the shapes of the parts, where a rank's files hold parts; the whole
            inventory otherwise.
    """
    problems: list[str] = []
    scales, offsets, found = pair_scales(stored, problems)
    family = family_of(config)
    specs = family.inventory(config)
    wanted = parts if parts is not None else {name: (spec, spec.shape) for name, spec in specs.items()}
    weights = []
    # V4-Pro has 73,000 weights of sixty kinds: what matched once is not matched again
    matched: dict[object, tuple[Format | None, tuple[int, int]]] = {}
    for name, weight in found.items():
        if name not in wanted:
            problems.append(f"{weight.file}: tensor {name!r} is not part of this model{family.hint(name)}")
            continue
        (spec, shape), scale = wanted[name], scales.get(name)
        suffix = scale and scale.name.rpartition(".")[2]
        kind = (shape, spec.storage, weight.dtype, weight.shape, scale and (scale.dtype, scale.shape, suffix))
        if kind not in matched:
            try:
                matched[kind] = match(shape, spec.storage.value, weight, scale, config.block_size)
            except CheckpointError as error:
                problems.append(str(error))
                continue
        weights.append(StoredWeight(spec, weight, scale, *matched[kind], offsets.get(name), family.repack_tile))
    folder = config_path.parent
    problems += [f"{folder}: tensor {name!r} of this model is in no file" for name in wanted if name not in found]
    if problems and parts is None:
        problems[:0] = family.reasons(found, config, config_path)
    problems += _disagreements(config, config_path, weights)
    return tuple(weights), problems


def _disagreements(config: FamilyConfig, path: PurePath, weights: list[StoredWeight]) -> Iterator[str]:
    experts = ((w.weight, w.format) for w in weights if w.spec.storage is Storage.EXPERT)
    yield from differing_experts(experts, config.declared_expert_dtype, path)
    if config.quantization_config is not None and weights and all(w.format is None for w in weights):
        yield f"{path}: has a quantization_config, but no tensor is quantised"
