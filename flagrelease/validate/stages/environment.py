"""Machine and versions for the report. The packages are not imported to find their versions."""

from __future__ import annotations

import importlib.metadata
import platform

from flagrelease import __version__
from flagrelease.device import Device

_PACKAGES = ("torch", "triton", "flag_gems", "tokenizers", "lm_eval", "numpy")


def describe_environment(device: Device | None) -> dict[str, str]:
    """What can change a figure: versions of this program, Python and installed packages, processor, device if any."""
    found = {
        "flagrelease": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    installed = {name.lower().replace("-", "_"): name for name in _distributions()}
    found |= {name: importlib.metadata.version(installed[name]) for name in _PACKAGES if name in installed}
    if device is not None:
        found["device"] = device.name if device.type == "cpu" else f"{device.name} ({device.type})"
    return found


def _distributions() -> set[str]:
    return {name for names in importlib.metadata.packages_distributions().values() for name in names}
