"""`Device`: the one place that touches an accelerator's torch module. All else goes by names of the chip table."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from types import ModuleType

from flagrelease.chips import load_chips
from flagrelease.errors import ResourceError, UsageError


@dataclass(frozen=True, slots=True)
class Device:
    """A torch device: type (`cpu`, `cuda`, `npu`, `musa`), index, and the torch.distributed backend that serves it."""

    type: str
    index: int
    dist_backend: str

    @property
    def torch_device(self) -> str:
        """The device string of torch."""
        return self.type if self.type == "cpu" else f"{self.type}:{self.index}"

    def set_current(self) -> None:
        """Make it the default of its type in this process."""
        if self.type != "cpu":
            _module(self.type).set_device(self.index)

    def synchronize(self) -> None:
        """Wait until all work queued on it is done."""
        if self.type != "cpu":
            _module(self.type).synchronize(self.index)

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""
        if self.type == "cpu":
            page = os.sysconf("SC_PAGE_SIZE")
            return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page
        free, total = _module(self.type).mem_get_info(self.index)
        return int(free), int(total)


def open_device(name: str, index: int = 0) -> Device:
    """The device `name`: `auto`, `cpu`, a torch device type of the chip table, or a chip.

    `auto` is the first accelerator that is there, else the CPU.

    Raises:
        UsageError: no such name.
        ResourceError: its torch module is not installed, or shows no such device.
    """
    if name == "cpu":
        return Device("cpu", 0, "gloo")
    types = {chip.torch_device: chip for chip in reversed(load_chips().values())}
    if name == "auto":
        for kind in types:
            if _count(kind) > index:
                return Device(kind, index, types[kind].dist_backend)
        return Device("cpu", 0, "gloo")
    chips = {alias: chip for chip in load_chips().values() for alias in (chip.id, *chip.aliases)} | types
    if name not in chips:
        raise UsageError(f"device {name!r} is none of auto, cpu, {', '.join(sorted(types))}, nor a chip")
    chip = chips[name]
    count = _count(chip.torch_device)
    if count <= index:
        needed = chip.torch_module or "torch"
        raise ResourceError(f"device {name!r}, index {index}: {needed} shows {count} {chip.torch_device} devices here")
    return Device(chip.torch_device, index, chip.dist_backend)


def _count(kind: str) -> int:
    try:
        module = _module(kind)
    except ResourceError:
        return 0
    return int(module.device_count()) if module.is_available() else 0


def _module(kind: str) -> ModuleType:
    """`torch.cuda`, `torch.npu`, `torch.musa`: the last two appear when the vendor's module is imported."""
    import torch

    extension = next((c.torch_module for c in load_chips().values() if c.torch_device == kind and c.torch_module), None)
    if extension is not None:
        try:
            importlib.import_module(extension)
        except ImportError as error:
            raise ResourceError(f"device {kind!r} needs the module {extension}, which cannot be imported") from error
    module: ModuleType = getattr(torch, kind)
    return module
