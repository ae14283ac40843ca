"""What is refused before a model is loaded, which can take many minutes."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from flagrelease.errors import ResourceError, UsageError
from flagrelease.model.families import read_config

_ORIGIN = re.compile(r"https?://[^/?#\s*@]+")  # as a browser sends it: no path, no slash at the end
DEFAULT_CONTEXT = 16384  # tokens of a sequence where nobody says


def choose_context(release: Path, context: int | None) -> int:
    """Tokens that a sequence of this release may have: `context`, or the default, but no more than the model sees.

    Raises:
        UsageError: a context that the model does not have.
        CheckpointError: the folder has no config of a model.
    """
    most = read_config(release / "config.json")[0].max_position_embeddings
    if context is not None and not 0 < context <= most:
        raise UsageError(f"a context of {context} tokens: the model allows 1 to {most}")
    return context or min(DEFAULT_CONTEXT, most)


def serving_key(host: str, variable: str | None) -> str | None:
    """The key that clients must send, from the environment variable that `--api-key-env` names.

    Raises:
        UsageError: the variable is missing, empty or no ASCII text; or there is none, and others can reach `host`.
    """
    if variable is None:
        if not _is_loopback(host):
            raise UsageError(f"--host {host}: others can reach it; --api-key-env NAME says which key they must send")
        return None
    key = os.environ.get(variable, "")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"--api-key-env {variable}: the environment has no such variable, or no key of ASCII in it")
    return key


def check_origins(origins: Sequence[str], key: str | None) -> None:
    """Refuse what is no origin of web pages, and all pages (`*`) where no key is asked for.

    Raises:
        UsageError: names the origin.
    """
    for origin in origins:
        if origin == "*" and key is None:
            raise UsageError("--allow-origin *: every page that this user visits could ask the model; it needs a key")
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise UsageError(f"--allow-origin {origin}: scheme and host are expected, such as https://chat.example.org")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: only this one is loopback by itself
        return host == "localhost"


def require_writable(path: Path) -> None:
    """Refuse an output file that cannot be written.

    Raises:
        ResourceError: it is a folder, or its folder is not there or does not allow it.
    """
    if path.is_dir():
        raise ResourceError(f"{path}: is a folder; a file is to be written there")
    if not path.parent.is_dir():
        raise ResourceError(f"{path}: its folder does not exist")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ResourceError(f"{path}: cannot be written (read-only, or no permission)")


def leads() -> bool:
    """Whether this process reads, checks and writes files: it is alone, or the first rank that torchrun started."""
    return os.environ.get("RANK", "0") == "0"
