"""The optional packages, by the extra that installs them, and what is said where one is missing.

`pip install .` brings what plans, converts and verifies. Everything else needs an extra, and every command says which
one before it begins, instead of failing at an import.
"""

from __future__ import annotations

import importlib.util

from flagrelease.errors import ResourceError

# extra -> modules that it brings
EXTRAS: dict[str, tuple[str, ...]] = {
    "engine": ("torch", "safetensors", "tokenizers"),
    "serve": ("fastapi", "uvicorn"),
    "constraints": ("llguidance",),
    "bench": ("httpx2",),
    "publish": ("cryptography", "huggingface_hub", "modelscope_hub"),
    "math": ("math_verify",),
    "ray": ("ray",),
    "eval": ("lm_eval", "datasets", "httpx2"),
}


def require_extra(extra: str, what: str) -> None:
    """Refuse to begin `what` without the packages of an extra.

    Raises:
        ResourceError: one is not installed; the message has the command that installs it.
    """
    for module in EXTRAS[extra]:
        if importlib.util.find_spec(module) is None:
            raise ResourceError(f"{what} needs {module}, which is not installed: {remedy(extra)}")


def missing_extra(error: ModuleNotFoundError) -> ResourceError | None:
    """The refusal for an import that failed for lack of an extra; None if the module belongs to none."""
    module = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return ResourceError(f"{module} is not installed: {remedy(extra)}")
    return None


def remedy(extra: str) -> str:
    """The command that installs an extra from a clone of this project, whose name no package index has.

    Where a torch is installed it may be a chip vendor's, which `engine` could replace; `chip` brings the rest of it.
    """
    if extra == "engine" and _has_torch():
        return f"{_command('chip')}, which leaves torch and triton as they are"
    return _command(extra)


def _command(extra: str) -> str:
    return f"pip install '.[{extra}]' in a clone of flagrelease"


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None
