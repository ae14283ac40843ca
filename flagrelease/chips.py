"""The chip table: what is known of the eight platforms, read from `chips.yaml`. A chip is data."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flagrelease.errors import UsageError

ReleaseDtype = Literal["bf16", "fp8"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Product(_Strict):
    """One product of a platform; memory is that of one card."""

    name: str
    memory_gib: int = Field(gt=0)
    cards_per_node: int = Field(gt=0)


class VisibleDevices(_Strict):
    """Environment variables that choose devices: for a process, and for the container runtime."""

    process: str
    container: str | None


class Container(_Strict):
    """How a container gets the cards: `flags` with the vendor's runtime (`prerequisite`), `raw_flags` without it."""

    prerequisite: str | None
    flags: tuple[str, ...] | None
    raw_flags: tuple[str, ...] | None
    flash_image: str | None
    pro_image: str | None


class Software(_Strict):
    """Versions that FlagOS validated on the platform; several are divided by a slash."""

    driver: str | None
    sdk: str
    python: str | None
    torch: str
    triton: str
    flagtree: str | None


class Published(_Strict):
    """What FlagOS published of DeepSeek-V4 by hand."""

    flash: str
    pro: str | None


class Chip(_Strict):
    """One platform. `unknown` maps each field that is null to the reason."""

    id: str
    vendor: str
    products: tuple[Product, ...] = Field(min_length=1)
    aliases: tuple[str, ...]
    torch_device: str
    torch_module: str | None
    dist_backend: str
    dist_library: str
    visible_devices: VisibleDevices
    smi: str
    fp8: bool | None
    fp4: bool
    release_dtype: ReleaseDtype
    release_reason: str
    container: Container
    host_arch: str | None
    software: Software
    published: Published
    notes: tuple[str, ...]
    sources: tuple[str, ...] = Field(min_length=1)
    unknown: dict[str, str]

    @property
    def memory_gib(self) -> int:
        """Memory of a card of the product that plans are made for."""
        return self.products[0].memory_gib

    @property
    def cards_per_node(self) -> int:
        """Cards a node of that product."""
        return self.products[0].cards_per_node

    @model_validator(mode="after")
    def _every_null_has_a_reason(self) -> Chip:
        nulls = set(_nulls(self.model_dump(exclude={"unknown"})))
        if nulls != set(self.unknown):
            missing, extra = sorted(nulls - set(self.unknown)), sorted(set(self.unknown) - nulls)
            raise ValueError(f"null without a reason: {missing}; reason beside a value: {extra}")
        return self


def _nulls(document: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in document.items():
        if value is None:
            found.append(prefix + key)
        elif isinstance(value, dict):
            found += _nulls(value, f"{prefix}{key}.")
    return found


def parse_chips(text: str) -> dict[str, Chip]:
    """Read a chip table; ids and aliases name one chip each.

    Raises:
        ValueError: a row that breaks the schema, or a name that two rows claim.
    """
    chips = {name: Chip.model_validate({"id": name, **row}) for name, row in yaml.safe_load(text).items()}
    names = [name for chip in chips.values() for name in (chip.id, *chip.aliases)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"names claimed twice: {', '.join(twice)}")
    return chips


@cache
def load_chips() -> dict[str, Chip]:
    """The table by id."""
    return parse_chips(resources.files("flagrelease").joinpath("chips.yaml").read_text(encoding="utf-8"))


def get_chip(name: str) -> Chip:
    """The chip of this id or alias.

    Raises:
        UsageError: no such chip; the message has those there are, and the nearest name.
    """
    chips = load_chips()
    by_name = {alias: chip for chip in chips.values() for alias in (chip.id, *chip.aliases)}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=1)
    hint = f"; did you mean {by_name[near[0]].id!r}?" if near else ""
    raise UsageError(f"chip {name!r} is not in the table ({', '.join(chips)}){hint}")


def repo_name(model: str, chip: Chip, dtype: str | None = None) -> str:
    """The repository of a release: `FlagRelease/DeepSeek-V4-Flash-mthreads-FlagOS`, a dtype before the vendor."""
    parts = [model, *([dtype.upper()] if dtype else []), chip.id, "FlagOS"]
    return "FlagRelease/" + "-".join(parts)
