"""The devices that torch shows, asked in a process of its own, because a vendor's torch may crash or hang on import."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from flagrelease.chips.table import Chip
from flagrelease.doctor.packages import Packages
from flagrelease.doctor.place import Place

_SECONDS = 120.0  # a cold import of torch with a vendor's module takes half of this on a slow disk


class TorchDevice(BaseModel):
    """One device. `capability` is CUDA's, as (9, 0); null where a torch module has none."""

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int | None
    capability: tuple[int, int] | None


class Torch(BaseModel):
    """What torch showed.

    Attributes:
        installed: whether there is a torch to ask.
        version: that it says itself; null where it could not be imported.
        kind: the device type that was asked for; `module` is what had to be imported for it.
        failed_at, failure: the step at which it ended, and how; null where all went well.
        failed_imports: modules that are installed and cannot be imported.
        backend: of torch.distributed for this device, and its version if torch tells it.
        triton: version of the module that is imported as triton.
    """

    model_config = ConfigDict(frozen=True)

    installed: bool
    version: str | None = None
    kind: str
    module: str | None
    devices: tuple[TorchDevice, ...] = ()
    failed_at: str | None = None
    failure: str | None = None
    failed_imports: tuple[str, ...] = ()
    backend: str
    backend_there: bool | None = None
    backend_version: str | None = None
    triton: str | None = None


def ask_torch(place: Place, packages: Packages, chip: Chip) -> Torch:
    """Ask for the devices of this chip's type."""
    facts: dict[str, Any] = {"kind": chip.torch_device, "module": chip.torch_module, "backend": chip.dist_backend}
    if packages.version("torch") is None:
        return Torch(installed=False, **facts)
    if module_missing(packages, chip):
        failure = f"{chip.torch_module} is not installed"
        return Torch(installed=True, failed_at=f"show {chip.torch_device} devices", failure=failure, **facts)
    module = chip.torch_module or ""
    ran = place.probe("torch_devices.py", [chip.torch_device, module, chip.dist_backend], _SECONDS)
    told = [json.loads(line) for line in ran.out.splitlines() if line.startswith("{")]
    steps = [one["step"] for one in told if "step" in one]
    said: dict[str, Any] = {key: value for one in told for key, value in one.items()}
    devices = tuple(TorchDevice.model_validate(one["device"]) for one in told if "device" in one)
    backend, triton = said.get("backend", {}), said.get("triton", {})
    failed = ran.code != 0 or steps[-1:] != ["done"]
    step = steps[-1] if steps else "start Python"
    imports = [step.removeprefix("import ")] if failed and step.startswith("import ") else []
    if "error" in triton and packages.version("triton") is not None:
        imports.append("triton")
    return Torch(
        installed=True,
        version=said.get("torch"),
        devices=devices,
        failed_at=step if failed else None,
        failure=ran.ending if failed else None,
        failed_imports=tuple(imports),
        backend_there=backend.get("there"),
        backend_version=backend.get("version"),
        triton=triton.get("version"),
        **facts,
    )


def module_missing(packages: Packages, chip: Chip) -> bool:
    """Whether the vendor's torch module, which its distribution is named after, is not installed."""
    return chip.torch_module is not None and packages.version(chip.torch_module) is None
