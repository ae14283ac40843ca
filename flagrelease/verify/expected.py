"""Which tensors a release must hold, from its config, its target and the names its source had.

Names and logical shapes come from the inventory of the model's family (`flagrelease.model`), and how a release format
stores each kind of weight from `flagrelease.formats.releases`. What becomes of each tensor is decided here,
independently of the converter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flagrelease.errors import VerificationError
from flagrelease.formats.formats import (
    FP4,
    FP8,
    FP8_GROUP,
    MXFP8,
    Format,
    block_counts,
    offset_name,
    row_scale_name,
    scale_names,
)
from flagrelease.formats.releases import RELEASE_FORMATS, Description, Kept, ReleaseFormat
from flagrelease.model.config import FamilyConfig
from flagrelease.model.families import family_of
from flagrelease.model.tensors import Storage, TensorSpec
from flagrelease.records.manifest import Manifest

# vLLM copies E8M0 scales of FP8 experts into float32 as bytes
_FLOAT_SCALES = tuple(dtype for dtype in FP8.scale_dtypes if dtype != "F8_E8M0")


@dataclass(frozen=True, slots=True)
class Form:
    """A tensor as a header must show it: its name, the dtypes allowed and the logical shape."""

    name: str
    dtypes: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExpectedWeight:
    """One tensor of the inventory as the release must hold it.

    Attributes:
        spec: of the inventory.
        source_scale: the name of its scale in the source; None for a weight that the source stores plain.
        stored: what becomes of a weight that the source stores quantised; None: BF16.
        weight, scale, offset: the tensors that hold it; None where there is none.
        copies: further tensors that hold the weight's bytes.
    """

    spec: TensorSpec
    source_scale: str | None
    stored: Format | Kept | None
    weight: Form
    scale: Form | None = None
    offset: Form | None = None
    copies: tuple[Form, ...] = ()

    @property
    def forms(self) -> tuple[Form, ...]:
        """The tensors that the release holds for this weight."""
        return tuple(form for form in (self.weight, self.scale, self.offset, *self.copies) if form is not None)

    def sure_copies(self) -> Iterator[tuple[Form, str]]:
        """Tensors that hold a source tensor's bytes whatever the source's dtypes are, with the name in the source."""
        if self.source_scale is None:
            yield from ((form, self.spec.name) for form in self.forms)
        elif self.scale is not None and self.stored is Kept.AS_STORED:
            yield self.weight, self.spec.name
            yield self.scale, self.source_scale


def expected_weights(manifest: Manifest, config: FamilyConfig) -> list[ExpectedWeight]:
    """The weights of a release in inventory order.

    Raises:
        VerificationError: the manifest's list of source tensors is not that of this model, its target does not exist,
            or the config does not say how quantised weights are stored.
    """
    target, release = manifest.target, RELEASE_FORMATS[manifest.target.dtype]
    if target.layout not in release.layouts:
        raise VerificationError(f"manifest.json: target: {release.name} exists in the hf layout only")
    specs = family_of(config).inventory(config)
    scales = _source_scales(specs, set(manifest.source.tensors))
    described = config.block_size is not None and config.declared_expert_dtype is not None
    if scales and release.experts is not None and release.description is Description.DEEPSEEK and not described:
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


def _expect(spec: TensorSpec, source_scale: str | None, manifest: Manifest, config: FamilyConfig) -> ExpectedWeight:
    release, mp = RELEASE_FORMATS[manifest.target.dtype], manifest.target.layout == "mp"
    expert = spec.storage is Storage.EXPERT
    stored = release.stored(spec.name, expert=expert, mp=mp)
    if spec.storage is Storage.TABLE:
        stored = None if _decodes_tables(manifest) else Kept.AS_STORED
    if source_scale is None or stored is None:
        plain = Form(spec.name, (spec.storage.value.plain,), spec.shape)
        return ExpectedWeight(spec, source_scale, None, plain, copies=_copies(plain, release, config))
    if isinstance(stored, Format) and stored is not FP8:
        return _by_row_or_group(spec, source_scale, stored, release)
    name = scale_names(spec.name)[0] if mp else source_scale
    if spec.storage is Storage.TABLE:
        codes = Form(spec.name, FP8_GROUP.weight_dtypes, spec.shape)
        return ExpectedWeight(
            spec, source_scale, stored, codes, _scale_form(name, spec, FP8_GROUP, FP8_GROUP.scale_dtypes, None)
        )
    if stored is Kept.AS_STORED and expert and config.declared_expert_dtype == "fp4":
        packed = _fp4_form(spec, manifest)
        return ExpectedWeight(
            spec, source_scale, stored, packed, _scale_form(name, spec, FP4, FP4.scale_dtypes, config.block_size)
        )
    codes = Form(spec.name, FP8.weight_dtypes, spec.shape)
    wide = stored is FP8 and release.f32_scales and not mp
    scale = _scale_form(name, spec, FP8, _FLOAT_SCALES if wide else FP8.scale_dtypes, config.block_size)
    return ExpectedWeight(spec, source_scale, stored, codes, scale)


def _decodes_tables(manifest: Manifest) -> bool:
    """Whether Engram tables become BF16: in a release of BF16 whose recipe does not keep them."""
    return manifest.target.dtype == "bf16" and manifest.options.get("engram_tables", "decode") == "decode"


def _copies(plain: Form, release: ReleaseFormat, config: FamilyConfig) -> tuple[Form, ...]:
    """vllm-ascend reads embedding and head of the preview's MTP stage under names of their own."""
    if not config.has_mtp_stage:
        return ()
    return tuple(Form(copy, plain.dtypes, plain.shape) for name, copy in release.copies if name == plain.name)


def _by_row_or_group(spec: TensorSpec, source_scale: str, stored: Format, release: ReleaseFormat) -> ExpectedWeight:
    weight = Form(spec.name, stored.weight_dtypes, spec.shape)
    dtypes = stored.scale_dtypes if stored is MXFP8 else ("F32",)
    scale = _scale_form(row_scale_name(spec.name), spec, stored, dtypes, None)
    offset = Form(offset_name(spec.name), dtypes, scale.shape) if release.offsets else None
    return ExpectedWeight(spec, source_scale, stored, weight, scale, offset)


def _fp4_form(spec: TensorSpec, manifest: Manifest) -> Form:
    """An mp release has F4, with the logical shape in its header; an hf release keeps the source's spelling."""
    recorded = manifest.tensors.get(spec.name)
    dtypes = ("F4",) if manifest.target.layout == "mp" else FP4.weight_dtypes
    dtype = recorded.dtype if recorded is not None and recorded.dtype in dtypes else dtypes[0]
    return Form(spec.name, (dtype,), FP4.stored_shape(dtype, spec.shape))


def _scale_form(
    name: str, spec: TensorSpec, fmt: Format, dtypes: tuple[str, ...], block_size: tuple[int, int] | None
) -> Form:
    block = fmt.block(block_size, spec.shape[-1])
    assert block is not None, "told apart before"
    return Form(name, dtypes, block_counts(spec.shape, block))
