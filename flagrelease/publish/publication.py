"""`Publication`: every file that will be online, with size and digest, and where its bytes come from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from flagrelease.errors import UsageError
from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.hubs.names import CARD_NAME, REPORT_NAME
from flagrelease.publish.records import Records
from flagrelease.records.manifest import MANIFEST_NAME, alike_but_for_case


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """One file: `origin` is the local path of a file of the release, or the bytes of a document made from records."""

    path: str
    size: int
    sha256: str
    origin: Path | bytes


@dataclass(frozen=True)
class Publication:
    """What is published where.

    Attributes:
        hub: None for a folder.
        repo: `owner/name`; for a folder its path.
        siblings: repositories of the same hub that may hold the same weights, so that the hub may copy them:
            `owner/name`, or `owner/name@branch`.
    """

    records: Records
    hub: Hub | None
    repo: str
    private: bool
    files: tuple[PublishedFile, ...]
    siblings: tuple[str, ...] = ()

    @cached_property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Path -> SHA-256."""
        return {file.path: file.sha256 for file in self.files}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the list of files."""
        return digest_of(self.digests)

    @cached_property
    def version(self) -> str:
        """The tag."""
        return version_of(self.records.manifest.tool.version, self.digests)

    @cached_property
    def title(self) -> str:
        """Of its commits."""
        return f"{self.records.recipe.model} for {self.records.chip.id}: {self.version}"

    @cached_property
    def visibility(self) -> str:
        """As both hubs call it."""
        return "private" if self.private else "public"

    @cached_property
    def by_path(self) -> dict[str, PublishedFile]:
        """The files by path."""
        return {file.path: file for file in self.files}


def digest_of(digests: Mapping[str, str]) -> str:
    """SHA-256 of a list (path -> SHA-256) as sha256sum writes it: digest, two blanks, path, sorted by path."""
    return hashlib.sha256("".join(f"{digests[path]}  {path}\n" for path in sorted(digests)).encode()).hexdigest()


def version_of(tool_version: str, digests: Mapping[str, str]) -> str:
    """The tag: version of the tool and digest of the files, so that other files can never want the same tag."""
    return f"v{tool_version}-{digest_of(digests)[:12]}"


def make_publication(
    records: Records,
    hub: Hub | None,
    repo: str,
    private: bool,
    documents: Mapping[str, bytes],
    siblings: tuple[str, ...] = (),
) -> Publication:
    """Join the files of the release with `documents` (path -> bytes), the manifest and the report.

    Digests of the release's files are the manifest's; they are not read. The card takes the place of the source's
    README.md; no other document may take the place of a file.

    Raises:
        UsageError: a document has the name of a file of the release, or two names differ only in case.
    """
    written = {MANIFEST_NAME: records.manifest_bytes, **documents}
    if records.report_bytes is not None:
        written[REPORT_NAME] = records.report_bytes
    taken = sorted({file.path for file in records.manifest.files} & set(written) - {CARD_NAME})
    if taken:
        raise UsageError(f"{records.release}: the release has files that publishing writes: {', '.join(taken)}")
    files = [
        PublishedFile(file.path, file.size, file.sha256, records.release / file.path)
        for file in records.manifest.files
        if file.path not in written
    ]
    files += [
        PublishedFile(path, len(content), hashlib.sha256(content).hexdigest(), content)
        for path, content in written.items()
    ]
    if alike := alike_but_for_case(file.path for file in files):
        raise UsageError(
            f"{records.release}: {alike[0]!r} and {alike[1]!r} differ only in case; ModelScope and the file systems of "
            "macOS and Windows keep one of them. Rename one in the source and convert again"
        )
    return Publication(records, hub, repo, private, tuple(sorted(files, key=lambda file: file.path)), siblings)
