"""What checking a published release asks of a hub, whichever it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from flagrelease.errors import UsageError, VerificationError
from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.listing import RemoteFile
from flagrelease.records.manifest import MANIFEST_NAME, parse_manifest


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


def refuse_another_models(
    client: HubClient, repo: str, revision: str, listed: Iterable[RemoteFile], model: str
) -> None:
    """What is replaced must be an earlier publication of the same model, by the manifest that lies there.

    Raises:
        UsageError: it is not a manifest of flagrelease, or of another model.
    """
    for file in listed:
        if file.path == MANIFEST_NAME:
            content = client.read(repo, revision, MANIFEST_NAME, 0, file.size)
            try:
                there = parse_manifest(content, f"{repo}/{MANIFEST_NAME}").model
            except VerificationError as error:
                raise UsageError(
                    f"{error}; so it is nothing that flagrelease published; name another repository"
                ) from None
            if there != model:
                raise UsageError(f"{repo}: holds {there}, this is {model}; name another repository")


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
