"""Bytes of the releases that the shipped recipes make, as a plan says them. A test plans them again."""

from __future__ import annotations

from functools import cache
from importlib import resources

from pydantic import BaseModel, ConfigDict, Field

from flagrelease.plain_yaml import parse_yaml


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ReleaseSize(_Strict):
    """Bytes of the tensor files of a release, and of one rank's where it is cut for ranks."""

    bytes: int = Field(gt=0)
    rank_bytes: int | None = None


class ModelSizes(_Strict):
    """Bytes of the tensors of a published checkpoint, and its releases by `FORMAT-LAYOUT`."""

    source_bytes: int = Field(gt=0)
    releases: dict[str, ReleaseSize]


@cache
def planned_sizes() -> dict[str, ModelSizes]:
    """By the model's name, as recipes have it."""
    text = resources.files("flagrelease.chips.listing").joinpath("sizes.yaml").read_text(encoding="utf-8")
    return {model: ModelSizes.model_validate(row) for model, row in parse_yaml(text).items()}
