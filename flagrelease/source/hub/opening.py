"""What people write for a checkpoint, `DIR` or `hf://OWNER/NAME@REVISION`, and the files that it stands for."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from flagrelease.errors import UsageError
from flagrelease.source.hub.address import HubPath

if TYPE_CHECKING:
    from flagrelease.shard.files import CheckpointFiles


def place_of(text: str) -> PurePath:
    """The folder, or the address of a repository, that is written as `text`. Nothing is opened.

    Raises:
        UsageError: an address of no known hub, or without a repository.
    """
    if "://" not in text:
        return Path(text)
    from flagrelease.publish.reading.remote import parse_address

    parse_address(text)
    return HubPath(text)


def folder_of(text: str) -> Path:
    """The folder that is written as `text`, for commands that read a checkpoint from a disk only.

    Raises:
        UsageError: it is an address.
    """
    if "://" in text:
        raise UsageError(
            f"{text}: this command needs a folder, because the engine reads the checkpoint, too; inspect, plan, "
            f"convert and verify read it on its hub"
        )
    return Path(text)


def files_at(place: PurePath) -> CheckpointFiles:
    """The files of the checkpoint at `place`, which `place_of` made. A hub is asked for the commit and the listing.

    Raises:
        CheckpointError: the hub has no such repository or revision, or does not show it.
        ResourceError: the hub's client is not installed.
        NetworkError: the hub refuses, or does not answer.
    """
    if not isinstance(place, HubPath):
        from flagrelease.shard.folder import FolderFiles  # which reads with numpy

        return FolderFiles(Path(place))
    from flagrelease.publish.reading.remote import parse_address
    from flagrelease.source.hub.files import open_hub_files

    address = parse_address(str(place))
    assert address is not None, "a HubPath has ://"
    return open_hub_files(address)
