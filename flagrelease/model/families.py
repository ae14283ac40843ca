"""The families, chosen by `model_type` of config.json: here and nowhere else."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from flagrelease.errors import CheckpointError
from flagrelease.model.config import FamilyConfig, document_of, read_document
from flagrelease.model.family import Family
from flagrelease.model.v4.family import V4
from flagrelease.model.v41.family import V41

FAMILIES: dict[str, Family[Any]] = {family.model_type: family for family in (V4, V41)}


def family_of(config: FamilyConfig) -> Family[Any]:
    """The family that a parsed config belongs to."""
    return FAMILIES[config.model_type]


def parse_config(raw: dict[str, Any], origin: PurePath | str) -> FamilyConfig:
    """Check a `config.json` document. `origin` names it in errors.

    Raises:
        CheckpointError: no family has this model_type, or a key is missing or of a wrong type.
    """
    config: FamilyConfig = family_of_document(raw, origin).parse(raw, origin)
    return config


def family_of_document(raw: dict[str, Any], origin: PurePath | str) -> Family[Any]:
    """The family that a `config.json` document says it is of. `origin` names it in errors.

    Raises:
        CheckpointError: no family has this model_type.
    """
    family = FAMILIES.get(str(raw.get("model_type")))
    if family is None:
        known = " and ".join(map(repr, FAMILIES))
        raise CheckpointError(f"{origin}: model_type is {raw.get('model_type')!r}; this tool converts {known}")
    return family


def read_config(path: Path) -> tuple[FamilyConfig, dict[str, Any]]:
    """Read `config.json`; return the checked part and the whole document (which the rewriter needs).

    Raises:
        CheckpointError: no such file, not JSON, of no family, or a key missing or of a wrong type.
    """
    raw = read_document(path)
    return parse_config(raw, path), raw


def read_config_bytes(content: bytes, path: PurePath) -> tuple[FamilyConfig, dict[str, Any]]:
    """`read_config` of bytes that were read from `path`."""
    raw = document_of(content, path)
    return parse_config(raw, path), raw


def family_named(name: str) -> Family[Any] | None:
    """The family that publishes a model called `name`."""
    return next((family for family in FAMILIES.values() if name in family.names), None)


def has_known_shape(name: str) -> bool:
    """Whether a family publishes a model called `name`."""
    return family_named(name) is not None
