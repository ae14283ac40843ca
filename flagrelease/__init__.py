"""DeepSeek-V4 for every chip: convert, prove and publish one release per platform.

The command line is `flagrelease`; from Python, `flagrelease.engine` runs a release.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"
__all__ = ["__version__", "engine"]


def __getattr__(name: str) -> ModuleType:
    """A public part, imported when it is first used."""
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What is public."""
    return list(__all__)
