"""Which tensors a release must hold, from its config, its target and the names its source had.

Names and logical shapes come from `flagrelease.model.v4.inventory`. What must happen to each tensor is decided here
from the meaning of the targets, independently of the converter.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagrelease.errors import VerificationError
from flagrelease.formats.formats import FP4, FP8, Format, block_counts, scale_names
from flagrelease.model.v4.config import ModelConfig
from flagrelease.model.v4.inventory import Storage, TensorSpec, inventory
from flagrelease.records.manifest import Manifest, TargetRecord


class Fate(Enum):
    """What happens to a weight on its way from source to release."""

    COPY = "same bytes"
    DECODE = "decoded to BF16"
    REPACK = "FP4 held as FP8"


@dataclass(frozen=True, slots=True)
class Form:
    """A tensor as a header must show it: its name, the dtypes allowed and the logical shape."""

    name: str
    dtypes: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExpectedWeight:
    """One tensor of the inventory as the release must hold it. `source_scale`: name of its scale in the source."""

    spec: TensorSpec
    source_scale: str | None
    weight: Form
    scale: Form | None

    @property
    def forms(self) -> tuple[Form, ...]:
        """The tensors that the release holds for this weight."""
        return (self.weight,) if self.scale is None else (self.weight, self.scale)

    def fate(self, source_format: Format | None) -> Fate:
        """What must have happened to a weight that the source stores in `source_format` (None: plain)."""
        if source_format is None:
            return Fate.COPY
        if self.weight.dtypes == ("BF16",):
            return Fate.DECODE
        return Fate.REPACK if source_format is FP4 and self.weight.dtypes == FP8.weight_dtypes else Fate.COPY

    def surely_copied(self, target: TargetRecord) -> bool:
        """Whether the bytes must be the source's. False also where that cannot be told without the source's dtypes."""
        maybe_repacked = target.dtype == "fp8" and self.spec.storage is Storage.EXPERT
        return self.source_scale is None or (self.weight.dtypes != ("BF16",) and not maybe_repacked)


def expected_weights(manifest: Manifest, config: ModelConfig) -> list[ExpectedWeight]:
    """The weights of a release in inventory order.

    Raises:
        VerificationError: the manifest's list of source tensors is not that of this model, or the config does not
            say how quantised weights are stored.
    """
    specs = inventory(config)
    scales = _source_scales(specs, set(manifest.source.tensors))
    described = config.block_size is not None and config.declared_expert_dtype is not None
    if scales and manifest.target.dtype != "bf16" and not described:
        raise VerificationError("config.json does not say how the weights are quantised, so no tensor can be told")
    return [_expect(spec, scales.get(name), manifest, config) for name, spec in specs.items()]


def _source_scales(specs: dict[str, TensorSpec], stored: set[str]) -> dict[str, str]:
    scales: dict[str, str] = {}
    for name, spec in specs.items():
        found = [scale for scale in scale_names(name) if scale in stored]
        if len(found) > 1:
            raise VerificationError(f"manifest.json: tensor {name!r}: the source has two scales, {' and '.join(found)}")
        if found and spec.storage.value.formats:
            scales[name] = found[0]
    wanted = specs.keys() | scales.values()
    problems = [f"tensor {name!r}: missing" for name in sorted(wanted - stored)]
    problems += [f"tensor {name!r}: not of this model" for name in sorted(stored - wanted)]
    if problems:
        raise VerificationError(f"manifest.json: source.tensors: {problems[0]} ({len(problems)} such)")
    return scales


def _expect(spec: TensorSpec, source_scale: str | None, manifest: Manifest, config: ModelConfig) -> ExpectedWeight:
    target = manifest.target
    # DeepSeek's inference code multiplies by wo_a without a scale, so its checkpoints hold wo_a decoded
    decoded = target.dtype == "bf16" or (target.layout == "mp" and spec.name.endswith(".attn.wo_a.weight"))
    if source_scale is None or decoded or config.block_size is None:
        return ExpectedWeight(spec, source_scale, Form(spec.name, (spec.storage.value.plain,), spec.shape), None)
    scale = scale_names(spec.name)[0] if target.layout == "mp" else source_scale
    fp4 = spec.storage is Storage.EXPERT and target.dtype == "native" and config.declared_expert_dtype == "fp4"
    if fp4:
        packed = _fp4_form(spec, manifest)
        return ExpectedWeight(spec, source_scale, packed, _scale_form(scale, spec, FP4, config))
    codes = Form(spec.name, FP8.weight_dtypes, spec.shape)
    return ExpectedWeight(spec, source_scale, codes, _scale_form(scale, spec, FP8, config))


def _fp4_form(spec: TensorSpec, manifest: Manifest) -> Form:
    """An mp release has F4, with the logical shape in its header; an hf release keeps the source's spelling."""
    recorded = manifest.tensors.get(spec.name)
    dtypes = ("F4",) if manifest.target.layout == "mp" else FP4.weight_dtypes
    dtype = recorded.dtype if recorded is not None and recorded.dtype in dtypes else dtypes[0]
    return Form(spec.name, (dtype,), FP4.stored_shape(dtype, spec.shape))


def _scale_form(name: str, spec: TensorSpec, fmt: Format, config: ModelConfig) -> Form:
    block = fmt.block(config.block_size, spec.shape[-1])
    assert block is not None, "told apart before"
    return Form(name, fmt.scale_dtypes, block_counts(spec.shape, block))
