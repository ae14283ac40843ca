"""`HuggingFacePlace`: a branch of the repository that the release is going to be published in.

`convert-FORMAT-LAYOUT-PLAN` holds tensor files as they are finished, a commit for each group. main does not change. The
last commit brings documents and manifest; until then the branch has no manifest. Publishing names the same blobs on
main, so nothing is sent twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from flagrelease.errors import VerificationError
from flagrelease.publish.hubs.names import STAGING_BRANCH
from flagrelease.publish.listing import HUB_FILES, compare
from flagrelease.publish.publication import PublishedFile
from flagrelease.publish.reading.huggingface import MAIN
from flagrelease.publish.reading.remote import RemoteFile
from flagrelease.publish.staging.place import Staged, require_whole
from flagrelease.publish.upload.huggingface_files import send_batch

if TYPE_CHECKING:
    from flagrelease.publish.upload.huggingface import HuggingFace
    from flagrelease.publish.upload.huggingface_files import Operation


class HuggingFacePlace:
    """A branch for one release."""

    def __init__(self, client: HuggingFace, staged: Staged, repo: str, private: bool) -> None:
        """Nothing is asked yet."""
        self._client, self._staged, self._repo, self._private = client, staged, repo, private
        self.branch = f"{STAGING_BRANCH}{staged.folder}-{staged.plan[:12]}"
        self._begun = False

    @property
    def address(self) -> str:
        """As `verify` takes it."""
        return f"hf://{self._repo}@{self.branch}"

    def whole(self, files: Sequence[PublishedFile]) -> set[str]:
        """By the listing of the branch: size and SHA-256 of LFS files."""
        there = {file.path: file for file in self._listed()}
        return {f.path for f in files if f.path in there and _is(f, there[f.path])}

    def send(self, files: Sequence[PublishedFile]) -> None:
        """Blobs first, then one commit on the branch, then the listing."""
        self._begin()
        additions: list[Operation] = list(send_batch(self._client, self._repo, self.branch, list(files)))

        def call() -> None:
            if len(self.whole(files)) < len(files):
                self._commit(additions, f"{self._staged.folder}: {len(files)} files")

        self._client.attempt(f"commit to {self.branch} of {self._repo}", call)
        require_whole(self, files)

    def complete(self, files: Sequence[PublishedFile]) -> None:
        """One commit with documents and manifest, and without what is not of the release."""
        require_whole(self, [file for file in files if file.path in self._staged.names])
        by_path = {file.path: file for file in files}
        if not compare(by_path, self._listed()):
            return
        self._begin()
        documents = [file for file in files if file.path not in self._staged.names]
        additions: list[Operation] = list(send_batch(self._client, self._repo, self.branch, documents))

        def call() -> None:
            if compare(by_path, self._listed()):
                self._commit(additions, f"{self._staged.folder}: complete, not validated")

        self._client.attempt(f"commit to {self.branch} of {self._repo}", call)
        if difference := compare(by_path, self._listed()):
            raise VerificationError(f"{self.address}: the hub does not hold what it was sent: {difference}")

    def _listed(self) -> list[RemoteFile]:
        """Files of the branch; none if there is no such branch or repository."""
        client = self._client
        if not client.attempt(f"look at {self._repo}", partial(client.api.repo_exists, self._repo)):
            return []
        branches, _ = client.refs(self._repo)
        return client.list_files(self._repo, branches[self.branch]) if self.branch in branches else []

    def _begin(self) -> None:
        """Repository and branch, which begins as a copy of main: what is not of this release leaves it first."""
        if self._begun:
            return
        client, staged = self._client, self._staged
        client.ensure_repository(self._repo, self._private, staged.licence)
        client.refuse_foreign(self._repo, client.refs(self._repo)[0][MAIN], staged.model)
        client.ensure_branch(self._repo, self.branch)

        def call() -> None:
            foreign = sorted({file.path for file in self._listed()} - staged.names - HUB_FILES)
            if foreign:
                from huggingface_hub import CommitOperationDelete

                deletions: list[Operation] = [CommitOperationDelete(path, is_folder=False) for path in foreign]
                self._commit(deletions, f"{staged.folder}: begun, not complete")

        client.attempt(f"empty {self.branch} of {self._repo}", call)
        self._begun = True

    def _commit(self, operations: list[Operation], title: str) -> None:
        try:
            self._client.api.create_commit(self._repo, operations, commit_message=title, revision=self.branch)
        except ValueError as error:  # the client's, of a README.md whose metadata the hub does not take
            raise VerificationError(f"{self._repo}: {str(error).partition(chr(10))[0]}") from None


def _is(file: PublishedFile, there: RemoteFile) -> bool:
    return file.size == there.size and file.sha256 == there.sha256
