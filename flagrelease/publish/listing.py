"""Comparing what a target holds with what it should hold: nothing missing, nothing changed, nothing more."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flagrelease.errors import VerificationError
from flagrelease.publish.publication import PublishedFile
from flagrelease.publish.reading.remote import RemoteFile

# Written by a hub when it creates a repository; says which names are LFS files, and is no part of a release.
HUB_FILES = frozenset({".gitattributes"})
_SHOWN = 5  # differences in a message


@dataclass(frozen=True, slots=True)
class Difference:
    """Paths that are not as they should be."""

    missing: tuple[str, ...]
    changed: tuple[str, ...]
    extra: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.missing or self.changed or self.extra)

    def __str__(self) -> str:
        """One line, the first few paths of each kind."""
        kinds = (("missing", self.missing), ("changed", self.changed), ("not of this release", self.extra))
        return "; ".join(f"{kind}: {_first(paths)}" for kind, paths in kinds if paths)


def _first(paths: tuple[str, ...]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more


def compare(expected: Mapping[str, PublishedFile], found: Iterable[RemoteFile]) -> Difference:
    """What differs. A file of a hub's own counts only where the release has one of the same name."""
    there = {file.path: file for file in found}
    changed = [path for path, file in expected.items() if path in there and not same(file, there[path])]
    return Difference(
        missing=tuple(sorted(set(expected) - set(there))),
        changed=tuple(sorted(changed)),
        extra=tuple(sorted(set(there) - set(expected) - HUB_FILES)),
    )


def same(file: PublishedFile, remote: RemoteFile) -> bool:
    """Whether size and digest agree.

    Raises:
        VerificationError: the listing has no digest at all, or the local file is not what its digest says.
    """
    if file.size != remote.size:
        return False
    if remote.sha256 is not None:
        return file.sha256 == remote.sha256
    if remote.git_sha1 is None:
        raise VerificationError(f"{file.path}: the listing has no digest of it")
    return git_sha1(read_whole(file)) == remote.git_sha1


def read_whole(file: PublishedFile) -> bytes:
    """The bytes of a small file, checked.

    Raises:
        VerificationError: they are not what the digest says: changed since the manifest was written.
    """
    content = file.origin if isinstance(file.origin, bytes) else file.origin.read_bytes()
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise VerificationError(f"{file.path}: not what the manifest says; changed since")
    return content


def git_sha1(content: bytes) -> str:
    """The object id git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
