"""`Circumstances`: when, with what and on what something was measured. Every document of a benchmark carries them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from datetime import datetime, timezone

import torch

from flagrelease import __version__
from flagrelease.device import Device


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Of one run on this machine.

    Attributes:
        date: of its beginning, ISO 8601 in UTC.
        flagrelease: this package's version.
        torch: its version, with the build.
        triton: its version; None where it is not installed.
        device: what the device calls itself.
        torch_device: how torch calls it.
    """

    date: str
    flagrelease: str
    torch: str
    triton: str | None
    device: str
    torch_device: str

    @classmethod
    def now(cls, device: Device) -> Circumstances:
        """Of a run that begins."""
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(date, __version__, torch.__version__, _triton_version(), device.name, device.torch_device)


def _triton_version() -> str | None:
    """Asked of the module, which FlagTree and the vendors' builds also call so, whatever the package's name."""
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    return str(triton.__version__)
