"""`Found` and `Ability`: what the examination has seen, and one thing that a machine can or cannot do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from flagrelease.chips.table import Chip
from flagrelease.doctor.devices import Torch
from flagrelease.doctor.logins import Login
from flagrelease.doctor.machine import Machine
from flagrelease.doctor.packages import Packages

Can = Literal["yes", "partly", "no"]
MODEL = "DeepSeek-V4-Flash-0731"  # what all abilities are about
_ENGINE = ("safetensors", "tokenizers")
_SHOWN = 0.92  # of the memory that a card is sold with, a device shows at least this share


class Ability(BaseModel):
    """One thing. `install` are commands for what is missing."""

    model_config = ConfigDict(frozen=True)

    what: str
    can: Can
    why: str
    install: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What abilities follow from; `chip` is the one that was asked for, else the one that is here, if any."""

    chip: Chip | None
    packages: Packages
    machine: Machine
    torch: Torch
    logins: list[Login]

    @property
    def card_gib(self) -> int:
        """Memory of the smallest device: as the product is sold, of which a device shows a few per cent less."""
        sizes = [one.bytes / 2**30 for one in self.torch.devices if one.bytes]
        products = () if self.chip is None else self.chip.products
        if not sizes:
            return products[0].memory_gib if products else 0
        shown = min(sizes)
        sold = [one.memory_gib for one in products if _SHOWN * one.memory_gib <= shown <= one.memory_gib]
        return min(sold, default=int(shown))


def missing(packages: Packages, names: tuple[str, ...]) -> list[str]:
    """Those of the distributions that are not installed."""
    return [name for name in names if packages.version(name) is None]


def engine_trouble(found: Found) -> tuple[str, tuple[str, ...]] | None:
    """Why the bundled engine cannot run any model here, and what to install."""
    torch, vendor = found.torch, found.chip is not None and found.chip.id != "nvidia"
    if not torch.installed:
        install = "the vendor's image or wheel of torch" if vendor else "pip install '.[engine]'"
        return "no torch is installed", (install,)
    if torch.failed_at is not None:
        images = f"the vendor's image or wheels; `flagrelease chips {found.chip.id}` names them" if found.chip else ""
        return f"torch cannot {torch.failed_at}: {torch.failure}", (images,) if vendor else ()
    if absent := missing(found.packages, _ENGINE):
        return f"{', '.join(absent)} missing", ("pip install '.[chip]'",)
    return None
