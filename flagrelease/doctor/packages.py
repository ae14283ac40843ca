"""What is installed, by the records that pip keeps: nothing is imported, because importing is what may crash."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from packaging.markers import UndefinedEnvironmentName, default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from flagrelease.doctor.place import Place

_COMPARED = 40  # files of a folder whose bytes are compared with what their owners recorded


@dataclass(frozen=True, slots=True)
class Owner:
    """A distribution that owns files of a folder.

    Attributes:
        contested: files that another distribution owns too.
        intact: how many of `compared` contested files have the bytes that this one recorded.
    """

    name: str
    version: str
    files: int
    contested: int
    compared: int
    intact: int


class Packages:
    """The distributions of a place, by their names in pip's spelling (`torch-npu`)."""

    def __init__(self, place: Place) -> None:
        """Read the names and versions."""
        self._found: dict[str, list[importlib.metadata.Distribution]] = defaultdict(list)
        path = sys.path if place.packages is None else place.packages
        for folder in dict.fromkeys(Path(one).resolve() for one in path):
            for one in _distributions(folder):
                self._found[canonicalize_name(one.metadata["Name"])].append(one)

    def version(self, name: str) -> str | None:
        """Of the distribution that is imported, None if it is not installed."""
        found = self._found.get(canonicalize_name(name))
        return found[0].version if found else None

    def versions(self, names: Iterable[str]) -> dict[str, str]:
        """Of those that are installed."""
        return {name: version for name in names if (version := self.version(name)) is not None}

    def has_twice(self, name: str) -> bool:
        """Whether one folder has records of two versions of it; one folder behind another on the path is no fault."""
        folders = [str(one.locate_file("")) for one in self._found.get(canonicalize_name(name), [])]
        return len(folders) != len(set(folders))

    @cached_property
    def owners_of_triton(self) -> tuple[Owner, ...]:
        """The distributions whose RECORD names files in the folder `triton`, most files first."""
        return self._owners("triton/")

    def _owners(self, folder: str) -> tuple[Owner, ...]:
        claims: dict[str, dict[str, str]] = {}
        places: dict[str, importlib.metadata.Distribution] = {}
        for name, found in self._found.items():
            for one in found:
                files = _recorded(one, folder)
                if files:
                    claims[f"{name} {one.version}"], places[f"{name} {one.version}"] = files, one
        owners = []
        for key, files in claims.items():
            others = {path for other, theirs in claims.items() if other != key for path in theirs}
            contested = sorted(path for path in files if path in others)
            compared = [path for path in contested if path.endswith(".py")][:_COMPARED]
            intact = sum(_digest(Path(str(places[key].locate_file(path)))) == files[path] for path in compared)
            name, _, version = key.partition(" ")
            owners.append(Owner(name, version, len(files), len(contested), len(compared), intact))
        return tuple(sorted(owners, key=lambda owner: -owner.files))

    def unmet(self, names: Iterable[str]) -> list[str]:
        """What the named distributions require and do not have, as sentences; extras are left out."""
        environment = {key: str(value) for key, value in default_environment().items()} | {"extra": ""}
        found = []
        for name in names:
            for one in self._found.get(canonicalize_name(name), [])[:1]:
                for line in one.requires or []:
                    said = self._unmet(line, environment)
                    if said is not None:
                        found.append(f"{name} {one.version} requires {said}")
        return found

    def _unmet(self, line: str, environment: dict[str, str]) -> str | None:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            return None
        try:
            if wanted.marker is not None and not wanted.marker.evaluate(environment):
                return None
        except UndefinedEnvironmentName:
            return None
        version = self.version(wanted.name)
        text = f"{wanted.name}{wanted.specifier}"
        if version is None:
            return f"{text}, which is not installed"
        return None if satisfies(version, str(wanted.specifier)) else f"{text}; {version} is installed"


def _distributions(folder: Path) -> Iterator[importlib.metadata.Distribution]:
    """Those whose records are in a folder. ~orch-2.9.dist-info is what an interrupted pip left, and no torch."""
    for path in sorted([*folder.glob("*.dist-info"), *folder.glob("*.egg-info")]):
        described = path.is_file() or any((path / name).is_file() for name in ("METADATA", "PKG-INFO"))
        if described and not path.name.startswith("~"):
            one = importlib.metadata.Distribution.at(path)
            if _is_readable(one):
                yield one


def _is_readable(one: importlib.metadata.Distribution) -> bool:
    """Whether its records have a name and a version, and are text: a torn download leaves others."""
    try:
        return bool(one.metadata["Name"] and one.metadata["Version"])
    except (OSError, UnicodeDecodeError):
        return False


def _recorded(one: importlib.metadata.Distribution, folder: str) -> dict[str, str]:
    """Path -> SHA-256 as pip writes it, of the files in a folder."""
    try:
        text = one.read_text("RECORD") or ""
        lines = [line for line in text.splitlines() if line.lstrip('"').startswith(folder)]
        return {row[0]: row[1].removeprefix("sha256=") for row in csv.reader(lines) if len(row) > 1}
    except (OSError, UnicodeDecodeError, csv.Error):  # a damaged RECORD says of no file whose it is
        return {}


def _digest(path: Path) -> str | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def satisfies(version: str, specifier: str) -> bool:
    """Whether a version is in a PEP 440 range; a vendor's local part (+musa.4.0) does not count unless it is asked for.

    A version that no rule can read is in every range: nobody knows better.
    """
    from packaging.specifiers import SpecifierSet

    try:
        parsed = Version(version)
    except InvalidVersion:
        return True
    return SpecifierSet(specifier, prereleases=True).contains(parsed)


def local_part(version: str) -> str:
    """What stands behind the + of a version; empty if nothing does."""
    return version.partition("+")[2]
