"""Inference for DeepSeek-V4: the referee that shows what a release computes. `load` is where to start."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flagrelease.engine.loader import load as load


def __getattr__(name: str) -> Any:
    """`load`, imported when it is used: the command line imports this package and must not load torch for that."""
    if name == "load":
        from flagrelease.engine.loader import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
