"""What computes the figures of a stage: the bundled engine on a device of this machine, or a server."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable

from flagrelease.chips.table import Chip, load_chips
from flagrelease.device import Device
from flagrelease.ranks.job import ranks
from flagrelease.records.computed_on import ByEngine, ByServer
from flagrelease.records.rules import StageName
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.stages.environment import told_by
from flagrelease.validate.stages.stage import FILE_STAGES, Outcome


def computer(
    stage: StageName, chip: Chip, device: Device | str, endpoint: Endpoint | None
) -> ByEngine | ByServer | None:
    """What computes this stage, which is the server if one was given; None for a stage that reads files."""
    if stage in FILE_STAGES:
        return None
    if endpoint is not None:
        return ByServer(stages=(stage,), address=endpoint.shown, model=endpoint.model, told=told_by(endpoint))
    assert isinstance(device, Device), "a stage without a device is not run"
    return ByEngine(
        stages=(stage,),
        machine=_machine(device),
        device=device.type,
        count=1 if device.type == "cpu" else ranks(),
        chips_own=_is_of(device.type, device.name, chip),
    )


def computers(outcomes: Iterable[Outcome]) -> tuple[ByEngine | ByServer, ...]:
    """Those of all stages, each once, with the stages that it computed."""
    found: list[ByEngine | ByServer] = []
    for outcome in outcomes:
        mine = outcome.computed_on
        if mine is None:
            continue
        for place, other in enumerate(found):
            if other == mine.model_copy(update={"stages": other.stages}):
                found[place] = other.model_copy(update={"stages": other.stages + mine.stages})
                break
        else:
            found.append(mine)
    return tuple(found)


def _machine(device: Device) -> str:
    if device.type != "cpu":
        return device.name
    return f"{platform.machine()} CPU ({len(os.sched_getaffinity(0))} cores)"


def _is_of(kind: str, name: str, chip: Chip) -> bool:
    """Whether a device is one of this chip: of its kind, and not named after another vendor of the same kind.

    The torch of several vendors answers as `cuda`; a release for one of them that ran on another has proved nothing.
    """
    others = {other.vendor.lower() for other in load_chips().values() if other.vendor != chip.vendor}
    return kind == chip.torch_device and not any(vendor in name.lower() for vendor in others)
