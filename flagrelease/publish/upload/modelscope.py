"""Publishing to ModelScope: blobs, then commits on master with the manifest in the last, digests by listing, the tag.

The hub has tags but no branches, so master is not whole between two commits; the card and the manifest come last, and
the tag only after the check. The client's `upload_folder` is not used: it creates a public repository for a mistyped
name and believes a cache it keeps in the release. Nothing is kept on this side; the hub is asked by digest.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import IO, Any
from urllib.parse import urlsplit

from flagrelease.console import Tracker
from flagrelease.errors import NetworkError, UsageError, VerificationError
from flagrelease.publish.hubs.modelscope import commit_batches, in_commit_order, is_inline
from flagrelease.publish.listing import HUB_FILES, Difference, compare, read_whole
from flagrelease.publish.publication import Publication, PublishedFile
from flagrelease.publish.reading.modelscope import MASTER, ModelScopeClient
from flagrelease.publish.reading.remote import RemoteFile
from flagrelease.publish.upload.client import refuse_another_models
from flagrelease.records.manifest import MANIFEST_NAME


class ModelScope(ModelScopeClient):
    """Reading from one hub and publishing to it."""

    def publish(self, publication: Publication, progress: Tracker) -> str:
        """Make the repository's master hold exactly this publication, and tag it; returns the tag.

        Raises:
            UsageError: the repository has another visibility or licence, or holds something else.
            VerificationError: a file is not what the manifest says, the hub does not hold what it was sent, or
                somebody else changed master meanwhile.
            NetworkError: the hub did not do it; what did pass stays, and the same command resumes.
        """
        repo, tag = publication.repo, publication.version
        self.ensure_repository(repo, publication.private, publication.records.licence)
        if tagged := tag in self.tags(repo):
            self._check(publication, tag)
        found = self.list_files(repo, MASTER)
        self._refuse_foreign(publication, found)
        difference = compare(publication.by_path, found)
        wanted = [publication.by_path[path] for path in (*difference.missing, *difference.changed)]
        progress.add(publication.bytes - sum(file.size for file in wanted))
        self._send(publication, [file for file in wanted if not is_inline(file.path, file.size)], progress)
        if difference:
            self._commit(publication, found)
        self._check(publication, MASTER)
        if not tagged:
            self._tag(repo, tag)
            self._check(publication, tag)
        return tag

    def ensure_repository(self, repo: str, private: bool, spdx: str | None) -> None:
        """Create the repository with visibility and licence; one that is there must have both right.

        Raises:
            UsageError: it has not, or nobody has said which licence it is, which this hub wants to know first.
        """
        if spdx is None:
            raise UsageError(f"{repo}: ModelScope asks for a licence, and only a recipe says it; convert by a recipe")
        licence, visibility = self.hub.licence(spdx), "private" if private else "public"

        def call() -> None:
            if not self.api.repo_exists(repo, "model"):
                self.api.create_repo(repo, "model", visibility=visibility, license=licence)

        self.attempt(f"create {repo}", call)
        facts = self.describe(repo, MASTER)
        if facts.visibility != visibility:
            raise UsageError(f"{repo}: is {facts.visibility}; this publication is {visibility}")
        if (facts.licence or "").lower() not in {licence.lower(), spdx.lower()}:
            raise UsageError(f"{repo}: has licence {facts.licence!r}; this is {licence!r}")

    def _refuse_foreign(self, publication: Publication, listed: list[RemoteFile]) -> None:
        """A publication cut off between two commits has no manifest yet, but no file of another kind either."""
        there = {file.path for file in listed} - HUB_FILES
        if MANIFEST_NAME not in there and (foreign := sorted(there - set(publication.by_path))):
            raise UsageError(
                f"{publication.repo}: master holds {foreign[0]!r} and no {MANIFEST_NAME}, so nothing that flagrelease "
                "published; name another repository or empty it"
            )
        refuse_another_models(self, publication.repo, MASTER, listed, publication.records.recipe.model)

    def _check(self, publication: Publication, revision: str) -> None:
        if difference := compare(publication.by_path, self.list_files(publication.repo, revision)):
            raise VerificationError(
                f"{publication.repo}@{revision}: the hub does not hold this publication: {difference}"
                + ("" if revision == MASTER else "; a tag is never moved")
            )

    def _send(self, publication: Publication, files: list[PublishedFile], progress: Tracker) -> None:
        """Blobs that the hub does not have yet, one request each; the bytes are hashed on their way."""
        for file in files:
            self.attempt(f"send {file.path}", partial(self.send_one, publication.repo, file))
            progress.add(file.size)

    def send_one(self, repo: str, file: PublishedFile) -> None:
        """Send a blob, unless the hub has it.

        Raises:
            VerificationError: the file is not what its digest says.
            NetworkError: the hub wants it without encryption.
        """
        client = self.api.legacy
        address = client.validate_blobs(repo, "model", [{"oid": file.sha256, "size": file.size}]).get(file.sha256)
        if address is None:  # stored already
            return
        if urlsplit(client.endpoint).scheme == "https" and urlsplit(address).scheme != "https":
            # The client sends the token along.
            raise NetworkError(f"{file.path}: the hub wants it sent without encryption; refused")
        if isinstance(file.origin, bytes):
            client.upload_blob(address, file.origin, file.size)
            return
        with file.origin.open("rb") as stream:
            hashed = _HashedStream(stream, file.size)
            client.upload_blob(address, hashed, file.size)
        if hashed.digest.hexdigest() != file.sha256:
            raise VerificationError(f"{file.path}: not what the manifest says; changed since")

    def _commit(self, publication: Publication, before: list[RemoteFile]) -> None:
        """As many commits as the hub's limits ask. Each attempt looks first what is left, so a lost reply does no harm.

        The hub takes no parent for a commit, so a listing shows whether somebody else changed master since `before`.
        """

        def call() -> None:
            found = self.list_files(publication.repo, MASTER)
            if theirs := _changed_by_others(publication, before, found):
                raise VerificationError(
                    f"{publication.repo}: somebody else changed {theirs[0]!r} on master during this publication; it is "
                    "left as it is. When it may be replaced, run the same command again, which sends nothing twice"
                )
            difference = compare(publication.by_path, found)
            self.commit(publication.repo, publication.by_path, difference, publication.title)

        self.attempt(f"commit to {MASTER} of {publication.repo}", call)

    def commit(self, repo: str, by_path: Mapping[str, PublishedFile], difference: Difference, title: str) -> None:
        """Commit to master what is missing or changed, and delete what is extra; the manifest is in the last commit."""
        actions = _actions(by_path, difference)
        for batch in commit_batches((action, len(action["path"]) + len(action["content"])) for action in actions):
            self.api.legacy.create_commit(repo, "model", batch, title, MASTER)

    def _tag(self, repo: str, tag: str) -> None:
        def call() -> None:
            if tag not in self.tags(repo):
                self.api.create_repo_tag(repo, "model", tag, revision=MASTER)

        self.attempt(f"tag {tag}", call)


class _HashedStream:
    """A file that is hashed as it is read; its length is known, so it is not sent in chunks."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self.digest = hashlib.sha256()
        self._stream = stream
        self._size = size

    def __len__(self) -> int:
        return self._size

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self.digest.update(content)
        return content


def _changed_by_others(publication: Publication, before: list[RemoteFile], found: list[RemoteFile]) -> list[str]:
    """Paths that are neither as they were before this publication nor as it wants them, sorted."""
    was, now = ({file.path: file.sha256 for file in listed} for listed in (before, found))
    wanted = publication.digests
    return sorted(
        path
        for path in (was.keys() | now.keys() | wanted.keys()) - HUB_FILES
        if now.get(path) not in (was.get(path), wanted.get(path))
    )


def _actions(by_path: Mapping[str, PublishedFile], difference: Difference) -> Iterator[dict[str, Any]]:
    """Deletions, files, and last what says that the publication is complete."""
    empty = {"type": "normal", "size": 0, "sha256": "", "content": "", "encoding": ""}
    for path in difference.extra:
        yield {"action": "delete", "path": path, **empty}
    for path in in_commit_order((*difference.missing, *difference.changed)):
        file = by_path[path]
        if not is_inline(file.path, file.size):
            content = {"type": "lfs", "sha256": file.sha256, "content": "", "encoding": ""}
        else:
            text = base64.b64encode(read_whole(file)).decode()
            content = {"type": "normal", "sha256": "", "content": text, "encoding": "base64"}
        yield {"action": "create", "path": path, "size": file.size, **content}
