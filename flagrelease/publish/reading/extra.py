"""The packages that only publishing needs, and what is said where they are not installed."""

from __future__ import annotations

import importlib.util

from flagrelease.errors import ResourceError
from flagrelease.extras import remedy


def require(package: str) -> None:
    """Refuse the command unless a package of the `publish` extra is installed.

    Raises:
        ResourceError: it is not installed; the message has the command that installs it.
    """
    if importlib.util.find_spec(package) is None:
        raise ResourceError(f"{package} is not installed: {remedy('publish')}")
