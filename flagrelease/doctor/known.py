"""`known.yaml`: combinations that are known to go wrong, and which of them are here."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flagrelease.chips.stacks import Mark
from flagrelease.chips.table import load_chips
from flagrelease.doctor.packages import Packages, local_part, satisfies
from flagrelease.doctor.place import Place
from flagrelease.plain_yaml import parse_yaml

Severity = Literal["broken", "wrong", "risk"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class When(_Strict):
    """The conditions, of which all that are given must hold. The head of `known.yaml` says what each is."""

    packages: dict[str, str] = {}
    local: dict[str, str] = {}
    absent: tuple[str, ...] = ()
    chips: tuple[str, ...] = ()
    owners: int | None = None
    no_path: tuple[str, ...] = ()
    import_fails: str | None = None
    twice: str | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> When:
        if self == When.model_construct():
            raise ValueError("no condition")
        if unlisted := sorted(set(self.chips) - set(load_chips())):
            raise ValueError(f"chips that are not in the chip table: {', '.join(unlisted)}")
        return self


class Known(_Strict):
    """One combination."""

    id: str
    when: When
    severity: Severity
    consequence: str
    remedy: str
    mark: Mark
    sources: tuple[str, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What conditions are about.

    Attributes:
        chips: that the machine has, or whose torch it has.
        failed_imports: modules that are installed and cannot be imported.
    """

    place: Place
    packages: Packages
    chips: Collection[str]
    failed_imports: Collection[str]


def parse_known(text: str) -> tuple[dict[str, str], tuple[Known, ...]]:
    """The sources and the combinations of a table.

    Raises:
        ValueError: a row breaks the schema, has the id of another, or cites what is not listed, or a source is uncited.
    """
    table = parse_yaml(text)
    rows = tuple(Known.model_validate(row) for row in table["known"])
    ids = [row.id for row in rows]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise ValueError(f"ids used twice: {', '.join(twice)}")
    cited = {source for row in rows for source in row.sources}
    if cited != set(table["sources"]):
        raise ValueError(f"cited but not listed, or listed but not cited: {sorted(cited ^ set(table['sources']))}")
    return dict(table["sources"]), rows


@cache
def load_known() -> tuple[dict[str, str], tuple[Known, ...]]:
    """The table that is shipped."""
    return parse_known(resources.files("flagrelease.doctor").joinpath("known.yaml").read_text(encoding="utf-8"))


def found_here(here: Circumstances) -> list[Known]:
    """The combinations whose conditions hold, worst first."""
    order: tuple[Severity, ...] = ("wrong", "broken", "risk")
    found = [row for row in load_known()[1] if _holds(row.when, here)]
    return sorted(found, key=lambda row: order.index(row.severity))


def _holds(when: When, here: Circumstances) -> bool:
    packages = here.packages
    versions = {name: packages.version(name) for name in (*when.packages, *when.local)}
    return (
        all(version is not None for version in versions.values())
        and all(asked == "any" or satisfies(versions[name] or "", asked) for name, asked in when.packages.items())
        and all(re.fullmatch(asked, local_part(versions[name] or "")) for name, asked in when.local.items())
        and all(packages.version(name) is None for name in when.absent)
        and (not when.chips or any(chip in here.chips for chip in when.chips))
        and (when.owners is None or len(packages.owners_of_triton) >= when.owners)
        and (not when.no_path or not any(here.place.path(path).exists() for path in when.no_path))
        and (when.import_fails is None or when.import_fails in here.failed_imports)
        and (when.twice is None or packages.has_twice(when.twice))
    )
