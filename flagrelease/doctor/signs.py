"""Which chip a machine has: the vendor's tool, device files, and the software that is installed for it."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from importlib import resources

from pydantic import BaseModel, ConfigDict

from flagrelease.chips.table import Chip, load_chips
from flagrelease.doctor.packages import Packages
from flagrelease.doctor.place import Place
from flagrelease.plain_yaml import parse_yaml

_TOOL_SECONDS = 20.0
_LEFT = "nvidia"  # what is there when nothing of another vendor is


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChipSigns(_Strict):
    """Of one chip; the head of `signs.yaml` says what each is."""

    nodes: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()
    torch: str | None = None
    driver: str | None = None


class Signs(_Strict):
    """The table."""

    shared_nodes: tuple[str, ...]
    driver: str
    chips: dict[str, ChipSigns]
    stacks: dict[str, tuple[str, ...]]
    interesting: tuple[str, ...]


class Sighting(BaseModel):
    """What a machine shows of one chip.

    Attributes:
        hardware: the vendor's tool or a device file is here; `software`: a torch or a distribution for it is installed.
        cards: by numbered device files; null where the chip has none that are known.
        driver: its version, as the vendor's tool prints it.
        tool: how the tool ended, in words; null if it is not here.
    """

    model_config = ConfigDict(frozen=True)

    chip: str
    hardware: tuple[str, ...]
    software: tuple[str, ...]
    cards: int | None
    driver: str | None
    tool: str | None


@cache
def load_signs() -> Signs:
    """The table that is shipped."""
    text = resources.files("flagrelease.doctor").joinpath("signs.yaml").read_text(encoding="utf-8")
    return Signs.model_validate(parse_yaml(text))


def sightings(place: Place, packages: Packages) -> list[Sighting]:
    """The chips of which anything shows, be it a tool that fails: first those with hardware, then with software."""
    found = [_look(chip, place, packages) for chip in load_chips().values()]
    seen = [one for one in found if one.hardware or one.software or one.tool]
    if any(one.hardware for one in seen if one.chip != _LEFT):
        seen = [one for one in seen if one.chip != _LEFT or _own_nodes(one)]
    return sorted(seen, key=lambda one: (not one.hardware, not one.software))


def _own_nodes(one: Sighting) -> bool:
    """Device files of its own: the tool alone may be another vendor's wrapper."""
    return any(sign.startswith("/dev/") for sign in one.hardware)


def _look(chip: Chip, place: Place, packages: Packages) -> Sighting:
    signs = load_signs().chips.get(chip.id) or _of_the_row(chip)
    hardware, cards = _device_files(chip, signs, place)
    driver = tool = None
    if place.program(chip.smi.split()[0]) is not None:
        ran = place.run(chip.smi.split(), _TOOL_SECONDS)
        assert ran is not None
        match = re.search(signs.driver or load_signs().driver, ran.out)
        driver = None if match is None else match[1]
        tool = "answers" if ran.code == 0 else ran.ending
        if ran.code == 0:
            hardware = (*hardware, f"`{chip.smi}` answers")
    version = packages.version("torch")
    software = tuple(f"{name} {found}" for name, found in packages.versions(signs.distributions).items())
    if version is not None and signs.torch is not None and re.search(signs.torch, version):
        others = [one for name, one in load_signs().chips.items() if name != chip.id]
        if not any(packages.versions(one.distributions) for one in others):  # Kunlunxin's torch calls itself +cu129
            software = (f"torch {version}", *software)
    return Sighting(chip=chip.id, hardware=hardware, software=software, cards=cards, driver=driver, tool=tool)


def _of_the_row(chip: Chip) -> ChipSigns:
    """Of a chip that only the chip table has: the distribution is named after the module that it brings."""
    return ChipSigns() if chip.torch_module is None else ChipSigns(distributions=(chip.torch_module,))


def _device_files(chip: Chip, signs: ChipSigns, place: Place) -> tuple[tuple[str, ...], int | None]:
    """The chip's own device files that are here, and how many are numbered."""
    found, cards = [], None
    for pattern in _patterns(chip, signs):
        folder, _, name = pattern.rpartition("/")
        expression = re.compile(re.escape(name).replace(re.escape("{card}"), r"\d+"))
        here = [path.name for path in place.path(folder).glob("*") if expression.fullmatch(path.name)]
        if "{card}" in pattern:
            cards = (cards or 0) + len(here)
        if here:
            found.append(
                f"{folder}/{min(here)}" if len(here) == 1 else f"{folder}/{min(here)} and {len(here) - 1} more"
            )
    return tuple(found), cards


def _patterns(chip: Chip, signs: ChipSigns) -> tuple[str, ...]:
    """Device files that no other chip has."""
    count = Counter(path for one in load_chips().values() for path in set(_in_flags(one)))
    own = [path for path in _in_flags(chip) if count[path] == 1 and path not in load_signs().shared_nodes]
    return (*own, *signs.nodes)


def _in_flags(chip: Chip) -> list[str]:
    prefix = "--device="
    return [flag.removeprefix(prefix) for flag in chip.container.raw_flags if flag.startswith(f"{prefix}/dev/")]
