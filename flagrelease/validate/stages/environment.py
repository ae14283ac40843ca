"""Machine and versions for the report. The packages are not imported to find their versions."""

from __future__ import annotations

import asyncio
import importlib.metadata
import platform

from flagrelease import __version__
from flagrelease.device import Device
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.endpoint.client import EndpointClient

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


def describe_endpoint(endpoint: Endpoint | None) -> dict[str, str]:
    """What the server says of itself, by name, as its own word; empty where it says nothing, or does not answer now."""
    told = {} if endpoint is None else told_by(endpoint)
    return {f"{name} (the server's word)": value for name, value in told.items()}


def told_by(endpoint: Endpoint) -> dict[str, str]:
    """What the server says of itself now, by name."""

    async def ask() -> dict[str, str]:
        async with EndpointClient(endpoint) as client:
            return await client.told()

    return asyncio.run(ask())


def _distributions() -> set[str]:
    return {name for names in importlib.metadata.packages_distributions().values() for name in names}
