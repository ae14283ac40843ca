"""A recipe: which checkpoint becomes which releases. YAML in, a strict frozen `Recipe` out.

A recipe says what a release is and travels with it in the manifest. How the work is done (workers, device) is not in
it, and nothing that changes a byte is outside it. Its `validation` says how a release is judged: that changes no byte,
so it goes into the validation's report and not into the manifest.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from flagrelease.chips.table import get_chip
from flagrelease.errors import UsageError, first_problem
from flagrelease.records.manifest import Dtype, OGroups
from flagrelease.records.rules import ValidationRules

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
DEFAULT_MAX_FILE_BYTES = 5 * 10**9


def parse_bytes(value: Any) -> Any:
    """`5 GB`, `48 GiB` or a number, as bytes. Anything else is left for the schema to refuse."""
    match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", value.strip()) if isinstance(value, str) else None
    if match and match[2].upper() in _UNITS and match[1].count(".") <= 1 and match[1] != ".":
        return round(float(match[1]) * _UNITS[match[2].upper()])
    return value


ByteSize = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceSpec(_Strict):
    """Where the checkpoint is published, and where it lies on this machine (relative to the recipe)."""

    repo: str
    revision: str
    license: str
    path: str | None = None


class ConvertSpec(_Strict):
    """Everything about the conversion that changes a byte.

    Attributes:
        max_file_bytes: files of the hf layout are at most this long (a longer tensor has a file of its own).
        rank_part_bytes: a rank of an mp layout that is longer is written in parts of at most this; None: one file,
            which is what DeepSeek's generate.py opens.
        lossy_repack: whether FP4 that FP8 cannot hold exactly stops the work or is counted and rounded.
    """

    max_file_bytes: ByteSize = DEFAULT_MAX_FILE_BYTES
    rank_part_bytes: ByteSize | None = None
    lossy_repack: Literal["refuse", "allow"] = "refuse"


class ReleaseSpec(_Strict):
    """What one chip gets."""

    dtype: Dtype
    layout: str = Field(pattern=r"^(hf|mp[1-9][0-9]*)$")
    o_groups: OGroups = "shared"


class Recipe(_Strict):
    """One model and the chips it is released for. `languages` that it was made for (ISO 639) are what cards claim."""

    schema_version: Literal[1]
    model: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    languages: tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...] = ()
    source: SourceSpec
    convert: ConvertSpec = ConvertSpec()
    hubs: tuple[Literal["huggingface", "modelscope"], ...] = ()
    releases: dict[str, ReleaseSpec] = Field(min_length=1)
    validation: ValidationRules = ValidationRules()

    @field_validator("releases")
    @classmethod
    def _known_chips(cls, releases: dict[str, ReleaseSpec]) -> dict[str, ReleaseSpec]:
        for name in releases:
            try:
                chip = get_chip(name)
            except UsageError as error:
                raise ValueError(str(error)) from error
            if chip.id != name:
                raise ValueError(f"{name!r} is an alias; write {chip.id!r}")
        return releases


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        UsageError: not a file, not YAML, a key twice, an unknown key or chip, a value of the wrong form.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid YAML ({error})") from error
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"{path}: {first_problem(error, 'recipe')}") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets a mapping name a key twice and takes the last; a recipe must not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
