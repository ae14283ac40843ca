"""What checking a published release asks of a hub, whichever it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from flagrelease.hubs import Hub
from flagrelease.publish.listing import RemoteFile


@dataclass(frozen=True, slots=True)
class RepositoryFacts:
    """What the hub shows of a repository: `public`, `private` or a word of its own, and the licence as it spells it."""

    visibility: str
    licence: str | None


class HubClient(Protocol):
    """Reading from one hub. Every method waits out what passes by itself."""

    hub: Hub

    def pin(self, repo: str, revision: str | None) -> str:
        """The revision to read all of: a commit where the hub has them, else the tag. None: the default branch.

        Raises:
            VerificationError: there is no such repository, tag or branch.
        """
        ...

    def describe(self, repo: str, revision: str) -> RepositoryFacts:
        """Visibility and licence."""
        ...

    def list_files(self, repo: str, revision: str) -> list[RemoteFile]:
        """All files with their digests; nothing is downloaded."""
        ...

    def read(self, repo: str, revision: str, path: str, begin: int, count: int) -> bytes:
        """`count` bytes of a file from byte `begin`."""
        ...


def range_header(begin: int, count: int) -> dict[str, str]:
    """Headers that ask for bytes as they are stored."""
    return {"Range": f"bytes={begin}-{begin + count - 1}", "Accept-Encoding": "identity"}


def take(status: int, chunks: Iterable[bytes], begin: int, count: int) -> bytes:
    """The bytes of a range from the reply to it, and no more than were asked for.

    Raises:
        ConnectionError: the reply is shorter, or is not of this range.
    """
    if status != 206 and begin:
        raise ConnectionError(f"asked for a range, got HTTP {status}")
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) >= count:
            break
    if len(content) < count:
        raise ConnectionError(f"{len(content):,} of {count:,} bytes came")
    return bytes(content[:count])
