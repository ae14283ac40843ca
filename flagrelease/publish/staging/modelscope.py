"""`ModelScopePlace`: a private repository of its own, since this hub has no branches.

Its master has tensor files as they are finished, and no manifest until all of them are there. What is published is
another repository; the hub stores a blob once, so publishing asks first which it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from flagrelease.errors import VerificationError
from flagrelease.publish.hubs.modelscope import is_inline
from flagrelease.publish.listing import HUB_FILES, Difference, compare
from flagrelease.publish.publication import PublishedFile
from flagrelease.publish.reading.modelscope import MASTER
from flagrelease.publish.reading.remote import RemoteFile
from flagrelease.publish.staging.place import Staged, require_whole

if TYPE_CHECKING:
    from flagrelease.publish.upload.modelscope import ModelScope


class ModelScopePlace:
    """A private repository for one release."""

    def __init__(self, client: ModelScope, staged: Staged, repo: str) -> None:
        """Nothing is asked yet."""
        self._client, self._staged, self._repo = client, staged, repo
        self._begun = False

    @property
    def address(self) -> str:
        """As `verify` takes it."""
        return f"modelscope://{self._repo}"

    def whole(self, files: Sequence[PublishedFile]) -> set[str]:
        """By the listing of master: size and SHA-256."""
        there = {file.path: (file.size, file.sha256) for file in self._listed()}
        return {file.path for file in files if there.get(file.path) == (file.size, file.sha256)}

    def send(self, files: Sequence[PublishedFile]) -> None:
        """Blobs first, then commits, then the listing."""
        self._begin()
        self._bring({file.path: file for file in files}, Difference(tuple(file.path for file in files), (), ()))
        require_whole(self, files)

    def complete(self, files: Sequence[PublishedFile]) -> None:
        """Documents, and the manifest in the last commit; what is not of the release goes."""
        require_whole(self, [file for file in files if file.path in self._staged.names])
        by_path = {file.path: file for file in files}
        if not (difference := compare(by_path, self._listed())):
            return
        self._begin()
        self._bring(by_path, difference)
        if difference := compare(by_path, self._listed()):
            raise VerificationError(f"{self.address}: the hub does not hold what it was sent: {difference}")

    def _bring(self, by_path: dict[str, PublishedFile], wanted: Difference) -> None:
        for path in (*wanted.missing, *wanted.changed):
            file = by_path[path]
            if not is_inline(file.path, file.size):
                self._client.attempt(f"send {file.path}", partial(self._client.send_one, self._repo, file))

        def call() -> None:
            there = compare(by_path, self._listed())
            left = Difference(there.missing, there.changed, wanted.extra and there.extra)
            self._client.commit(self._repo, by_path, left, f"{self._staged.folder}: not validated")

        self._client.attempt(f"commit to {MASTER} of {self._repo}", call)

    def _listed(self) -> list[RemoteFile]:
        client = self._client
        if not client.attempt(f"look at {self._repo}", lambda: client.api.repo_exists(self._repo, "model")):
            return []
        return client.list_files(self._repo, MASTER)

    def _begin(self) -> None:
        """The repository, and in it only files that have a name of this release: a manifest of before leaves first."""
        if self._begun:
            return
        self._client.ensure_repository(self._repo, True, self._staged.licence)

        def call() -> None:
            foreign = tuple(sorted({file.path for file in self._listed()} - self._staged.names - HUB_FILES))
            self._client.commit(self._repo, {}, Difference((), (), foreign), f"{self._staged.folder}: begun")

        self._client.attempt(f"empty {self._repo}", call)
        self._begun = True
