"""Where the figures of a report were computed, so that nobody reads figures of one machine as those of another.

A release is for a chip; its figures are of whatever computed them. Integrity and weights compare bytes, which are the
same on every machine, so only the stages that run a model are told apart here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from flagrelease.records.rules import StageName


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ByEngine(_Strict):
    """The bundled engine computed these stages.

    Attributes:
        machine: what the device calls itself, such as "NVIDIA H200", or "x86_64 CPU (2 cores)".
        device: its kind in torch: `cpu`, `cuda`, ...
        count: of the devices, one for each rank.
        chips_own: whether the device is one of the chip that the release is for.
    """

    by: Literal["engine"] = "engine"
    stages: tuple[StageName, ...] = Field(min_length=1)
    machine: str = Field(min_length=1)
    device: str = Field(min_length=1)
    count: int = Field(ge=1)
    chips_own: bool

    def __str__(self) -> str:
        """For the headline."""
        machines = self.machine if self.count == 1 else f"{self.count} x {self.machine}"
        if self.chips_own:
            return f"computed by the bundled engine on {machines}"
        return f"computed on {machines}: proves the tool, not the chip"


class ByServer(_Strict):
    """A server answered these stages.

    Attributes:
        address: without anything secret; `model` is the name by which the server knows the model.
        told: what it says of itself, by name (`owned_by`, `version`, `server`): its word, checked by nobody.
    """

    by: Literal["endpoint"] = "endpoint"
    stages: tuple[StageName, ...] = Field(min_length=1)
    address: str = Field(min_length=1)
    model: str = Field(min_length=1)
    told: dict[str, str] = {}

    def __str__(self) -> str:
        """For the headline."""
        name = self.told.get("owned_by") or self.told.get("server")
        software = " ".join(part for part in (name, self.told.get("version")) if part)
        says = f"says it is {software}" if software else "does not say what it is"
        return f"answered by the server at {self.address}, which {says}; nothing shows its machine or its weights"


ComputedOn = Annotated[ByEngine | ByServer, Field(discriminator="by")]


def say_computed_on(computers: Sequence[ByEngine | ByServer]) -> str:
    """One line about all of them; with several, each with its stages."""
    if not computers:
        return "no figure of the model was computed: only files were read"
    if len(computers) == 1:
        return str(computers[0])
    return "; ".join(f"{', '.join(each.stages)}: {each}" for each in computers)


def on_the_chip(computers: Sequence[ByEngine | ByServer]) -> bool:
    """Whether it is shown that the chip's own devices computed everything that was computed, and something was."""
    return bool(computers) and all(isinstance(each, ByEngine) and each.chips_own for each in computers)
