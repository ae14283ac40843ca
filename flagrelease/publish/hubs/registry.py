"""The hubs that there are. A new hub is a file here, its line in `HUBS`, and its client in `publish/upload/`."""

from __future__ import annotations

from flagrelease.errors import UsageError
from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.hubs.modelscope import MODELSCOPE

HUBS: tuple[Hub, ...] = (HUGGING_FACE, MODELSCOPE)


def hub_by_scheme(scheme: str) -> Hub | None:
    """The hub that `--to` or an address names; None for anything else, such as a folder."""
    return next((hub for hub in HUBS if hub.scheme == scheme), None)


def schemes() -> list[str]:
    """What `--to` takes beside a folder."""
    return [hub.scheme for hub in HUBS]


def file_limits() -> dict[str, int]:
    """Hub -> bytes of the largest file that it takes."""
    return {hub.name: hub.limits.file_bytes for hub in HUBS}


def known_hub(name: str) -> str:
    """`name` itself, if a hub has it.

    Raises:
        ValueError: none has.
    """
    if name not in (names := [hub.name for hub in HUBS]):
        raise ValueError(f"{name!r} is no hub; there are {', '.join(names)}")
    return name


def find_licence(name: str | None) -> str:
    """The SPDX id of a source's licence, which the manifest may write in any case.

    Raises:
        UsageError: the manifest names none, or no hub has a known spelling of it.
    """
    if name is None:
        raise UsageError("manifest.json: source.license is null; a release without a licence is not published")
    known = {spdx.lower(): spdx for hub in HUBS for spdx in hub.licences}
    if (spdx := known.get(name.lower())) is None:
        raise UsageError(
            f"manifest.json: source.license {name!r} has no known spelling on the hubs ({', '.join(known.values())})"
        )
    return spdx
