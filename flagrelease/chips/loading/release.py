"""`Release`: what a loader sees of a release before it reads a byte of data; and which form of release it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, PositiveInt, ValidationError

from flagrelease.chips.stacks import Form
from flagrelease.errors import CheckpointError, first_problem
from flagrelease.model.config import FamilyConfig
from flagrelease.model.families import family_of, parse_config
from flagrelease.model.tensors import Storage, TensorSpec

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
# Keys of config.json that say how weights are stored. The model is the same whatever they say.
_STORAGE_KEYS = ("quantization_config", "expert_dtype")


def _no_broken_pattern(name: str) -> str:
    if name.startswith("re:"):
        try:
            re.compile(name[3:])
        except re.error as error:
            raise ValueError(f"{name!r} is no regular expression ({error})") from error
    return name


_Names = list[Annotated[str, AfterValidator(_no_broken_pattern)]] | None


class _Group(BaseModel):
    targets: _Names = None
    weights: dict[str, Any] | None = None
    input_activations: dict[str, Any] | None = None


class _Quantization(BaseModel):
    """The types of what the loaders read; other keys are theirs to ignore."""

    quant_method: str | None = None
    ignored_layers: _Names = None
    modules_to_not_convert: _Names = None
    ignore: _Names = None
    config_groups: dict[str, _Group] | None = None
    weight_block_size: tuple[PositiveInt, PositiveInt] | None = None


@dataclass(frozen=True)
class Release:
    """A release in one folder.

    Attributes:
        config: config.json.
        description: quant_model_description.json of a ModelSlim folder; null in others.
        tensors: (safetensors dtype, shape in the header) by name.
        files: names of the files in the folder, as far as the caller knows them.
    """

    config: Mapping[str, Any]
    description: Mapping[str, Any] | None
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = field(repr=False)
    files: frozenset[str] = frozenset()

    @cached_property
    def model(self) -> FamilyConfig:
        """The model's numbers.

        Raises:
            CheckpointError: config.json is not one of DeepSeek-V4.
        """
        return parse_config(
            {key: value for key, value in self.config.items() if key not in _STORAGE_KEYS}, "config.json"
        )

    @property
    def replayed(self) -> bool:
        """Whether `loaders.yaml` has the loaders of this model's family: they are those of DeepSeek-V4."""
        return self.model.model_type == "deepseek_v4"

    @cached_property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors of the model."""
        return tuple(family_of(self.model).inventory(self.model).values())

    @cached_property
    def quantization(self) -> Mapping[str, Any]:
        """quantization_config; empty without one.

        Raises:
            CheckpointError: it is no JSON object, or something in it has a type that no loader can take.
        """
        found = self.config.get("quantization_config") or {}
        if not isinstance(found, Mapping):
            raise CheckpointError(f"config.json: quantization_config is {type(found).__name__}, not an object")
        try:
            _Quantization.model_validate(found)
        except ValidationError as error:
            raise CheckpointError(f"config.json: quantization_config: {first_problem(error)}") from error
        return found

    @property
    def block(self) -> tuple[int, int]:
        """(rows, columns) that share an FP8 scale."""
        rows, columns = self.quantization.get("weight_block_size") or (128, 128)
        return rows, columns

    def dtype_of(self, name: str) -> str | None:
        """The stored dtype of a tensor; null if there is no such tensor."""
        return self.tensors[name][0] if name in self.tensors else None

    @cached_property
    def form(self) -> Form:
        """The name of the release's form: one of our formats, or of those that others publish.

        Judged by headers, as config.json may be what is wrong; one form is FP8 whose config.json lacks expert_dtype.
        """
        if self.description is not None:
            kinds = set(map(str, self.description.values()))
            forms: tuple[tuple[str, Form], ...] = (
                ("W4A8_DYNAMIC", "w4a8-ascend"),
                ("W8A8_MXFP8", "mxfp8"),
                ("W8A8_DYNAMIC", "w8a8-ascend"),
            )
            return next((form for word, form in forms if word in kinds), "bf16")
        if "model.embed_tokens.weight" in self.tensors:
            return "transformers"
        expert = next((spec.name for spec in self.specs if spec.storage is Storage.EXPERT), "")
        dense, grouped = "layers.0.attn.wq_b.weight", "layers.0.attn.wo_a.weight"
        experts, linears, wo_a = (self.dtype_of(name) for name in (expert, dense, grouped))
        stem = expert.removesuffix(".weight")
        if f"{stem}.weight_scale_2" in self.tensors:
            return "nvfp4"
        if f"{stem}.weight_scale" in self.tensors:
            if experts == "F8_E4M3":
                return "fp8-channel"
            if wo_a == "I8":
                return "int8-wo-a"
            return "int8" if linears == "I8" else "int8-experts"
        if experts in {"I8", "U8", "F4"}:
            return "native"
        if experts == "F8_E4M3":
            scale = self.dtype_of(f"{stem}.scale") or self.dtype_of(f"{stem}.weight_scale_inv")
            if scale == "F8_E8M0":
                return "fp8-e8m0"
            if wo_a == "BF16":
                return "fp8-bf16-wo-a"
            return "fp8" if self.config.get("expert_dtype") else "fp8-no-expert-dtype"
        return "fp8-bf16-experts" if linears == "F8_E4M3" else "bf16"


def skeleton(name: str) -> tuple[str, tuple[str, ...]]:
    """A name with every number between dots as 0, and the numbers: V4-Pro has 145,000 names of some hundred kinds."""
    numbers = tuple(_NUMBER.findall(name))
    return _NUMBER.sub("0", name), numbers


_bones_of = lru_cache(maxsize=1 << 18)(skeleton)  # the same names are asked for each stack


def by_skeleton(change: Callable[[str], str | None]) -> Callable[[str], str | None]:
    """`change` of names, asked once a kind of name. It must leave the numbers between dots as they are."""
    known: dict[str, str | None] = {}

    def changed(name: str) -> str | None:
        bones, numbers = _bones_of(name)
        if bones not in known:
            result = change(bones)
            known[bones] = None if result is None else _NUMBER.sub("%s", result.replace("%", "%%"))
        form = known[bones]
        return None if form is None else form % numbers

    return changed
