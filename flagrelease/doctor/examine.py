"""`examine`: everything that doctor finds, in one document."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flagrelease.chips.table import Chip, get_chip
from flagrelease.doctor.abilities import abilities
from flagrelease.doctor.devices import Torch, ask_torch
from flagrelease.doctor.found import Ability, Found
from flagrelease.doctor.known import Circumstances, Known, found_here
from flagrelease.doctor.logins import Login, look_at_logins
from flagrelease.doctor.machine import Machine, look_at_machine
from flagrelease.doctor.packages import Packages
from flagrelease.doctor.place import Place
from flagrelease.doctor.runs import possible_releases
from flagrelease.doctor.signs import Sighting, load_signs, sightings

_CHECKED = (  # what they require is compared with what is installed
    "torch", "torch-npu", "torch-musa", "triton", "triton-ascend", "flagtree", "flag-gems", "vllm", "sglang",
    "vllm-ascend", "vllm-plugin-fl", "transformers", "tokenizers", "numba", "huggingface-hub", "modelscope-hub",
)  # fmt: skip


class TritonOwner(BaseModel):
    """A distribution that owns files of the folder `triton`; `said` is how its files are."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    files: int
    said: str


class Diagnosis(BaseModel):
    """The document that `--json` prints.

    Attributes:
        chip: that the abilities are about: the one that was asked for, else the only one that is here; null if none.
        asked: whether it was asked for; `possible` whether a release of it can be run here, null if it was not.
        sightings: what the machine shows of each chip.
        packages: name -> version of those that matter.
        unmet: what they require and do not have.
        known: combinations of `known.yaml` that are here.
    """

    model_config = ConfigDict(frozen=True)

    chip: str | None
    asked: bool
    possible: bool | None
    sightings: tuple[Sighting, ...]
    machine: Machine
    torch: Torch
    packages: dict[str, str]
    triton: tuple[TritonOwner, ...]
    unmet: tuple[str, ...]
    known: tuple[Known, ...]
    logins: tuple[Login, ...]
    abilities: tuple[Ability, ...]


def examine(place: Place, asked: Chip | None, disk: Path, online: bool) -> Diagnosis:
    """Look at everything. Nothing is written, and no hub is asked unless `online`.

    Args:
        place: the machine.
        asked: a chip that the abilities should be about, whatever is here.
        disk: the folder where releases would be written.
        online: ask the hubs whether they take the tokens.
    """
    packages = Packages(place)
    seen = sightings(place, packages)
    chip = asked or _chip_of(seen)
    torch = ask_torch(place, packages, chip or get_chip("nvidia"))
    machine = look_at_machine(place, disk)
    logins = look_at_logins(place, packages, online)
    found = Found(chip, packages, machine, torch, logins)
    chips = {one.chip for one in seen} | ({asked.id} if asked is not None else set())
    known = found_here(Circumstances(place, packages, chips, torch.failed_imports))
    return Diagnosis(
        chip=None if chip is None else chip.id,
        asked=asked is not None,
        possible=None if asked is None else _is_here(asked, seen) and bool(possible_releases(found)),
        sightings=tuple(seen),
        machine=machine,
        torch=torch,
        packages=packages.versions(load_signs().interesting),
        triton=tuple(
            TritonOwner(
                name=one.name, version=one.version, files=one.files, said=_said(one.contested, one.compared, one.intact)
            )
            for one in packages.owners_of_triton
        ),
        unmet=tuple(packages.unmet(_CHECKED)),
        known=tuple(known),
        logins=tuple(logins),
        abilities=tuple(abilities(found)),
    )


def _chip_of(seen: list[Sighting]) -> Chip | None:
    """The one whose hardware is here; without any, the one whose software is. None if it is not one."""
    here = [one for one in seen if one.hardware] or [one for one in seen if one.software]
    return get_chip(here[0].chip) if len(here) == 1 else None


def _is_here(asked: Chip, seen: list[Sighting]) -> bool:
    """Whether the machine has the chip: six platforms are `cuda` to torch, so its devices alone say nothing."""
    return any(one.chip == asked.id and one.hardware for one in seen)


def _said(contested: int, compared: int, intact: int) -> str:
    if contested == 0:
        return "alone"
    return f"shares {contested} files with another; of {compared} that were compared, {intact} are as it installed them"
