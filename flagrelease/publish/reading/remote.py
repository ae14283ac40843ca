"""What reading asks of a hub, whichever it is, and what comes back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from flagrelease.errors import NetworkError, UsageError
from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.hubs.registry import hub_by_scheme, schemes

_ADDRESS = re.compile(r"(?P<scheme>[a-z]+)://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_OF_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


@dataclass(frozen=True, slots=True)
class Address:
    """A repository of a hub. `revision` is a tag, branch or commit, or None for the default branch."""

    hub: Hub
    repo: str
    revision: str | None


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as a listing has it: SHA-256, or for small files in git the SHA-1 of the blob."""

    path: str
    size: int
    sha256: str | None
    git_sha1: str | None = None


@dataclass(frozen=True, slots=True)
class RepositoryFacts:
    """What the hub shows of a repository: `public`, `private` or a word of its own, and the licence as it spells it."""

    visibility: str
    licence: str | None


class HubReader(Protocol):
    """One hub, to be read from. Every method waits out what passes by itself, and may be called by any thread."""

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
        """`count` bytes of a file from byte `begin`.

        Raises:
            NetworkError: the hub refuses, does not serve ranges, or did not answer in the end.
        """
        ...


def parse_address(text: str) -> Address | None:
    """`hf://OWNER/NAME@TAG` or `modelscope://OWNER/NAME`; None where there is no `://`.

    Raises:
        UsageError: another scheme, or not a repository.
    """
    if "://" not in text:
        return None
    match = _ADDRESS.fullmatch(text)
    if match is None or (hub := hub_by_scheme(match["scheme"])) is None:
        raise UsageError(f"{text!r}: write {' or '.join(f'{scheme}://OWNER/NAME@TAG' for scheme in schemes())}")
    return Address(hub, match["repo"], match["revision"])


def open_reader(hub: Hub, endpoint: str | None = None) -> HubReader:
    """The hub's client, which is imported now. `endpoint`: another address than the client's own settings say.

    Raises:
        ResourceError: the package that the hub publishes is not installed.
    """
    module, _, name = hub.reader.partition(":")
    return cast("HubReader", getattr(import_module(module), name)(endpoint))


def unseen(hub: Hub, repo: str) -> str:
    """What is said of a repository that the hub does not show: it does not say whether there is one."""
    return f"{repo}: no such repository on {hub.name}, or none that this token may see; {hub.login} if it is private"


def advice(hub: Hub, status: int | None) -> str:
    """What is said behind a refusal: of 401 and 403 what a user can do; of others nothing."""
    if status not in (401, 403):
        return ""
    return (
        f"; {hub.name} wants an account that may do this: {hub.login}, and if the repository is gated, ask for access "
        f"on its page first"
    )


def range_header(begin: int, count: int) -> dict[str, str]:
    """Headers that ask for bytes as they are stored."""
    return {"Range": f"bytes={begin}-{begin + count - 1}", "Accept-Encoding": "identity"}


def take(status: int, headers: Mapping[str, str], chunks: Iterable[bytes], begin: int, count: int) -> bytes:
    """The bytes of a range from the reply to it, and no more than were asked for.

    Raises:
        ConnectionError: the reply ends early: a connection that was cut.
        NetworkError: the reply is not of this range, or the file that is served ends inside it.
    """
    if status != 206 and begin:
        raise NetworkError(f"asked for bytes from {begin:,} on, got HTTP {status} and the whole file: no ranges here")
    if status == 206 and (said := _OF_RANGE.match(headers.get("content-range", ""))):
        if int(said[1]) != begin:
            raise NetworkError(f"asked for bytes from {begin:,} on, got those from {int(said[1]):,} on")
        if int(said[2]) < begin + count:
            raise NetworkError(f"the file ends at byte {int(said[2]):,}; the listing has at least {begin + count:,}")
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > count:  # at exactly `count` the reply is read to its end, or its connection could not be kept
            break
    if len(content) < count:
        raise ConnectionError(f"{len(content):,} of {count:,} bytes came")
    return bytes(content[:count])
