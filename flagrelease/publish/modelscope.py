"""Publishing to ModelScope: blobs, then commits on master with the manifest in the last, digests by listing, the tag.

The hub has tags but no branches, so master is not whole between two commits; the card and the manifest come last, and
the tag only after the check. The client's `upload_folder` is not used: it creates a public repository for a mistyped
name and believes a cache it keeps in the release. Nothing is kept on this side; the hub is asked by digest.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from functools import partial
from typing import IO, Any
from urllib.parse import urlsplit

from flagrelease.console import Tracker
from flagrelease.errors import NetworkError, UsageError, VerificationError
from flagrelease.publish.hub_client import refuse_another_models
from flagrelease.publish.limits import commit_batches, in_commit_order, is_inline
from flagrelease.publish.listing import HUB_FILES, Difference, compare, read_whole
from flagrelease.publish.modelscope_client import MASTER, ModelScopeClient
from flagrelease.publish.patience import Patience
from flagrelease.publish.publication import Publication, PublishedFile
from flagrelease.records.manifest import MANIFEST_NAME


class ModelScope:
    """Publications on one hub."""

    def __init__(self, endpoint: str | None = None, patience: Patience | None = None) -> None:
        """`endpoint`: another hub than MODELSCOPE_ENDPOINT says."""
        self._client = ModelScopeClient(endpoint, patience)

    def publish(self, publication: Publication, progress: Tracker) -> str:
        """Make the repository's master hold exactly this publication, and tag it; returns the tag.

        Raises:
            UsageError: the repository has another visibility or licence, or holds something else.
            VerificationError: a file is not what the manifest says, or the hub does not hold what it was sent.
            NetworkError: the hub did not do it; what did pass stays, and the same command goes on.
        """
        repo, tag = publication.repo, publication.version
        self._ensure_repository(publication)
        if tag in self._client.tags(repo):
            self._check(publication, tag)
            progress.add(publication.bytes)
            return tag
        self._refuse_foreign(publication)
        difference = self._difference(publication, MASTER)
        wanted = [publication.by_path[path] for path in (*difference.missing, *difference.changed)]
        progress.add(publication.bytes - sum(file.size for file in wanted))
        self._send(publication, [file for file in wanted if not is_inline(file)], progress)
        self._commit(publication, difference)
        self._check(publication, MASTER)
        self._tag(repo, tag)
        self._check(publication, tag)
        return tag

    def _ensure_repository(self, publication: Publication) -> None:
        repo, licence = publication.repo, publication.records.licence

        def call() -> None:
            if not self._client.api.repo_exists(repo, "model"):
                self._client.api.create_repo(
                    repo, "model", visibility=publication.visibility, license=licence.modelscope
                )

        self._client.attempt(f"create {repo}", call)
        facts = self._client.describe(repo, MASTER)
        if facts.visibility != publication.visibility:
            raise UsageError(f"{repo}: is {facts.visibility}; this publication is {publication.visibility}")
        if (facts.licence or "").lower() not in {licence.modelscope.lower(), licence.spdx.lower()}:
            raise UsageError(f"{repo}: has licence {facts.licence!r}; this is {licence.modelscope!r}")

    def _refuse_foreign(self, publication: Publication) -> None:
        """A publication cut off between two commits has no manifest yet, but no file of another kind either."""
        listed = self._client.list_files(publication.repo, MASTER)
        there = {file.path for file in listed} - HUB_FILES
        if MANIFEST_NAME not in there and (foreign := sorted(there - set(publication.by_path))):
            raise UsageError(
                f"{publication.repo}: master holds {foreign[0]!r} and no {MANIFEST_NAME}, so nothing that flagrelease "
                "published; name another repository or empty it"
            )
        refuse_another_models(self._client, publication.repo, MASTER, listed, publication.records.recipe.model)

    def _difference(self, publication: Publication, revision: str) -> Difference:
        return compare(publication.by_path, self._client.list_files(publication.repo, revision))

    def _check(self, publication: Publication, revision: str) -> None:
        if difference := self._difference(publication, revision):
            raise VerificationError(
                f"{publication.repo}@{revision}: the hub does not hold this publication: {difference}"
                + ("" if revision == MASTER else "; a tag is never moved")
            )

    def _send(self, publication: Publication, files: list[PublishedFile], progress: Tracker) -> None:
        """Blobs that the hub does not have yet, one request each; the bytes are hashed on their way."""
        for file in files:
            self._client.attempt(f"send {file.path}", partial(self._send_one, publication.repo, file))
            progress.add(file.size)

    def _send_one(self, repo: str, file: PublishedFile) -> None:
        client = self._client.api.legacy
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

    def _commit(self, publication: Publication, difference: Difference) -> None:
        """As many commits as the hub's limits ask. Each looks first what is left, so a lost reply does no harm."""
        title = f"{publication.records.recipe.model} for {publication.records.chip.id}: {publication.version}"

        def call() -> None:
            for actions in self._batches(publication):
                self._client.api.legacy.create_commit(publication.repo, "model", actions, title, MASTER)

        if difference:
            self._client.attempt(f"commit to {MASTER} of {publication.repo}", call)

    def _batches(self, publication: Publication) -> Iterator[list[dict[str, Any]]]:
        actions = _actions(publication, self._difference(publication, MASTER))
        return commit_batches((action, len(action["path"]) + len(action["content"])) for action in actions)

    def _tag(self, repo: str, tag: str) -> None:
        def call() -> None:
            if tag not in self._client.tags(repo):
                self._client.api.create_repo_tag(repo, "model", tag, revision=MASTER)

        self._client.attempt(f"tag {tag}", call)


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


def _actions(publication: Publication, difference: Difference) -> Iterator[dict[str, Any]]:
    """Deletions, files, and last what says that the publication is complete."""
    empty = {"type": "normal", "size": 0, "sha256": "", "content": "", "encoding": ""}
    for path in difference.extra:
        yield {"action": "delete", "path": path, **empty}
    for path in in_commit_order((*difference.missing, *difference.changed)):
        file = publication.by_path[path]
        if not is_inline(file):
            content = {"type": "lfs", "sha256": file.sha256, "content": "", "encoding": ""}
        else:
            text = base64.b64encode(read_whole(file)).decode()
            content = {"type": "normal", "sha256": "", "content": text, "encoding": "base64"}
        yield {"action": "create", "path": path, "size": file.size, **content}
