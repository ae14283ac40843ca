"""Headers matched with the declarations: the one place that accepts or refuses how a tensor is stored.

convert (its source), verify (release and source) and the engine all ask here, so that they accept the same files and
refuse the others in the same words. Nothing here reads data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import NamedTuple

from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import (
    FORMATS,
    Format,
    StorageRule,
    block_counts,
    scale_names,
    weight_of_offset,
    weight_of_scale,
)
from flagrelease.shard.header import TensorMeta

PLAIN_BLOCK = (1, 1)


class Match(NamedTuple):
    """What a stored weight is: its format (None: plain) and the (rows, elements) that share a scale."""

    format: Format | None
    block: tuple[int, int]


def pair_scales(
    stored: Mapping[str, TensorMeta], problems: list[str]
) -> tuple[dict[str, TensorMeta], dict[str, TensorMeta], dict[str, TensorMeta]]:
    """Split stored tensors into scales and zero points by the name of their weight, and all others by their own name.

    Scales without a weight and second scales of one weight are added to `problems` as sentences, and so are zero points
    (`.weight_offset`) whose weight has no scale of the same dtype and shape.
    """
    scales: dict[str, TensorMeta] = {}
    others: dict[str, TensorMeta] = {}
    offsets: dict[str, TensorMeta] = {}
    for name, meta in stored.items():
        if (of := weight_of_offset(name)) is not None:
            offsets[of] = meta
            continue
        weight = weight_of_scale(name)
        if weight is None:
            others[name] = meta
        elif weight not in stored:
            problems.append(f"{meta.file}: scale {name!r} has no weight {weight!r}")
        elif weight in scales:
            problems.append(f"{meta.file}: weight {weight!r} has two scales, {scales[weight].name!r} and {name!r}")
        else:
            scales[weight] = meta
    for weight, meta in offsets.items():
        scale = scales.get(weight)
        if scale is None or (scale.dtype, scale.shape) != (meta.dtype, meta.shape):
            problems.append(f"{meta.file}: {meta.name!r} has no scale of its dtype and shape beside it")
    return scales, offsets, others


def match(
    shape: tuple[int, ...],
    rule: StorageRule,
    weight: TensorMeta,
    scale: TensorMeta | None,
    weight_block_size: tuple[int, int] | None,
) -> Match:
    """Decide how a weight of logical `shape` is stored.

    Args:
        shape: logical shape, or that of the part which the file holds.
        rule: how a tensor of this kind may be stored.
        weight: its header entry.
        scale: the header entry of its scale, if there is one.
        weight_block_size: of config.json.

    Raises:
        CheckpointError: it is stored in no declared form; the message names file, tensor and rule.
    """
    where = f"{weight.file}: tensor {weight.name!r}"
    known = [fmt for fmt in FORMATS if weight.dtype in fmt.weight_dtypes]
    if not known or weight.dtype == rule.plain:
        return _match_plain(where, shape, rule, weight, scale)
    allowed = [fmt for fmt in known if fmt in rule.formats]
    if not allowed:
        raise _other_dtype(where, rule, weight)
    if scale is None:
        raise CheckpointError(f"{where}: {weight.dtype} without a scale; {scale_names(weight.name)[0]!r} is in no file")
    fitting = [fmt for fmt in allowed if scale.name.endswith(fmt.scale_suffixes)]
    if not fitting:
        raise CheckpointError(
            f"{scale.file}: scale {scale.name!r}: {weight.dtype} in the formats "
            f"{', '.join(fmt.name for fmt in allowed)} has scales named "
            f"{', '.join(sorted({suffix for fmt in allowed for suffix in fmt.scale_suffixes}))}"
        )
    # Formats of one weight dtype and one spelling of the scale are told apart by the scale's dtype.
    fitting = [fmt for fmt in fitting if scale.dtype in fmt.scale_dtypes] or fitting
    fmt = next((fmt for fmt in fitting if fmt.stored_shape(weight.dtype, shape) == weight.shape), None)
    if fmt is None:
        per_entry = fitting[0].elements_per_entry(weight.dtype)
        logical = [*weight.shape[:-1], weight.shape[-1] * per_entry] if weight.shape else []
        raise CheckpointError(f"{where}: shape {logical}; config.json gives {list(shape)}")
    return Match(fmt, _match_scale(where, shape, fmt, scale, weight_block_size))


def _match_plain(
    where: str, shape: tuple[int, ...], rule: StorageRule, weight: TensorMeta, scale: TensorMeta | None
) -> Match:
    if scale is not None:
        raise CheckpointError(f"{where}: {weight.dtype} has a scale ({scale.name!r}), but is not a quantised format")
    if weight.dtype != rule.plain:
        raise _other_dtype(where, rule, weight)
    if weight.shape != shape:
        raise CheckpointError(f"{where}: shape {list(weight.shape)}; config.json gives {list(shape)}")
    return Match(None, PLAIN_BLOCK)


def _other_dtype(where: str, rule: StorageRule, weight: TensorMeta) -> CheckpointError:
    wanted = f"{rule.plain} or a quantised format is expected for" if rule.formats else "this tensor is"
    return CheckpointError(f"{where}: stored as {weight.dtype}; {wanted} {rule.words}")


def _match_scale(
    where: str, shape: tuple[int, ...], fmt: Format, scale: TensorMeta, weight_block_size: tuple[int, int] | None
) -> tuple[int, int]:
    block = fmt.block(weight_block_size, shape[-1])
    if block is None:
        raise CheckpointError(f"{where}: {fmt.name} needs quantization_config.weight_block_size in config.json")
    if scale.dtype not in fmt.scale_dtypes:
        raise CheckpointError(
            f"{scale.file}: scale {scale.name!r}: dtype {scale.dtype}; {fmt.name} has scales of "
            f"{', '.join(sorted(fmt.scale_dtypes))}"
        )
    blocks = block_counts(shape, block)
    if scale.shape != blocks:
        raise CheckpointError(
            f"{scale.file}: scale {scale.name!r}: shape {list(scale.shape)}; {fmt.name} {list(shape)} "
            f"in blocks of {list(block)} has {list(blocks)}"
        )
    return block


def differing_experts(
    experts: Iterable[tuple[TensorMeta, Format | None]], declared: str | None, config: PurePath
) -> list[str]:
    """Sentences about routed experts that are not all stored alike, or not as config.json declares.

    `experts` are the header entries of the experts' weights with their formats; `config` is the path of config.json.
    """
    first: dict[str, TensorMeta] = {}
    for meta, fmt in experts:
        first.setdefault(fmt.name if fmt else "bf16", meta)
    problems = []
    found = ", ".join(f"{name} ({meta.name!r} in {meta.file.name})" for name, meta in sorted(first.items()))
    if len(first) > 1:
        problems.append(f"{config.parent}: routed experts are stored in several formats: {found}")
    if declared is not None and first and set(first) != {declared}:
        problems.append(f"{config}: expert_dtype is {declared}, the experts are stored as {found}")
    return problems
