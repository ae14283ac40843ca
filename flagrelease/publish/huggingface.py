"""Publishing to Hugging Face: everything on a branch, checked there, then one commit on main, checked, then the tag.

Nothing is kept on this side: each run asks the hub what is there and does what is left, so the same command goes on
after anything. The files are sent once. The commit on main names blobs that the hub has already, and only small files
that git keeps itself are in its body again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from flagrelease.console import Tracker
from flagrelease.errors import NetworkError, UsageError, VerificationError
from flagrelease.publish.hub_client import refuse_another_models
from flagrelease.publish.huggingface_client import MAIN, HuggingFaceClient
from flagrelease.publish.listing import HUB_FILES, Difference, compare, read_whole
from flagrelease.publish.patience import TRANSIENT_STATUS, Patience
from flagrelease.publish.publication import Publication, PublishedFile
from flagrelease.publish.secrets import redact
from flagrelease.records.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete


# Sent together before progress is shown; files inside go in parallel.
_BATCH_BYTES = 8 * 10**9
_BATCH_FILES = 100
# Smaller files are read whole and checked before they are sent; the hub keeps those that are not LFS in git itself.
_WHOLE_BYTES = 10 * 10**6


class CopyRefusedError(NetworkError):
    """The hub does not copy files from another repository; they have to be sent."""


class HuggingFace:
    """Publications on one hub."""

    def __init__(self, endpoint: str | None = None, patience: Patience | None = None) -> None:
        """`endpoint`: another hub than HF_ENDPOINT says."""
        self._client = HuggingFaceClient(endpoint, patience)

    def publish(self, publication: Publication, siblings: tuple[str, ...], progress: Tracker) -> str:
        """Make the repository's main hold exactly this publication, and tag it; returns the commit.

        `siblings` are repositories whose files may be copied on the server instead of being sent.

        Raises:
            UsageError: the repository has another visibility or licence, or holds something else.
            VerificationError: a file is not what the manifest says, the hub does not hold what it was sent, or
                somebody else committed to main meanwhile.
            NetworkError: the hub did not do it; what did pass stays, and the same command goes on.
        """
        repo, branch = publication.repo, f"publish-{publication.digest[:12]}"
        self._ensure_repository(publication)
        branches, tags = self._client.refs(repo)
        if (tagged := tags.get(publication.version)) is not None:
            self._check(publication, tagged)
            progress.add(publication.bytes)
            self._drop_branch(repo, branch)
            return tagged
        self._refuse_foreign(publication, branches[MAIN])
        if self._difference(publication, branches[MAIN]):
            self._stage(publication, branch, siblings, progress)
            commit = self._bring(publication, MAIN, branches[MAIN], partial(self._take_from, publication, branch))
        else:
            commit = branches[MAIN]
            progress.add(publication.bytes)
        self._tag(repo, publication.version, commit)
        self._drop_branch(repo, branch)
        return commit

    def _ensure_repository(self, publication: Publication) -> None:
        """Create the repository with its visibility; one that is there must have visibility and licence right.

        Hugging Face reads the licence from the card, so a repository that nothing was published to has none.
        """
        repo = publication.repo

        def call() -> None:
            if not self._client.api.repo_exists(repo):
                # Not exist_ok: a reply that was lost is noticed by asking again.
                self._client.api.create_repo(repo, private=publication.private)

        self._client.attempt(f"create {repo}", call)
        facts = self._client.describe(repo, MAIN)
        if facts.visibility != publication.visibility:
            raise UsageError(f"{repo}: is {facts.visibility}; this publication is {publication.visibility}")
        licence = publication.records.licence.huggingface
        if facts.licence not in (None, licence):
            raise UsageError(f"{repo}: has licence {facts.licence!r}; this is {licence!r}")

    def _refuse_foreign(self, publication: Publication, main: str) -> None:
        listed = self._client.list_files(publication.repo, main)
        there = {file.path for file in listed} - HUB_FILES
        if there and MANIFEST_NAME not in there:
            raise UsageError(
                f"{publication.repo}: main holds {len(there)} files without a {MANIFEST_NAME}, so nothing that "
                "flagrelease published; name another repository or empty it"
            )
        refuse_another_models(self._client, publication.repo, main, listed, publication.records.recipe.model)

    def _stage(self, publication: Publication, branch: str, siblings: tuple[str, ...], progress: Tracker) -> None:
        """Send everything to the branch, which an earlier run may have left."""
        head = self._ensure_branch(publication.repo, branch)
        try:
            self._bring(publication, branch, head, partial(self._send, publication, siblings, progress))
        except CopyRefusedError as refusal:
            print(f"{refusal}; the files are sent instead", file=sys.stderr, flush=True)
            progress.to(0)
            self._bring(publication, branch, head, partial(self._send, publication, (), progress))

    def _ensure_branch(self, repo: str, branch: str) -> str:
        """Returns its commit."""

        def call() -> str:
            if branch not in self._client.refs(repo)[0]:
                self._client.api.create_branch(repo, branch=branch, revision=MAIN)
            return self._client.refs(repo)[0][branch]

        return self._client.attempt(f"branch {branch}", call)

    def _difference(self, publication: Publication, revision: str) -> Difference:
        return compare(publication.by_path, self._client.list_files(publication.repo, revision))

    def _check(self, publication: Publication, revision: str) -> None:
        if difference := self._difference(publication, revision):
            raise VerificationError(f"{publication.repo}@{publication.version}: {difference}; a tag is never moved")

    def _bring(
        self, publication: Publication, revision: str, parent: str, operations: Callable[[Difference], list[Operation]]
    ) -> str:
        """Make one commit on `revision`, whose commit was `parent`, after which it holds the publication.

        Safe to repeat: a commit whose reply was lost is found, and one by somebody else ends it. Returns the commit.
        """
        repo = publication.repo
        title = f"{publication.records.recipe.model} for {publication.records.chip.id}: {publication.version}"
        planned: list[Operation] = []  # what was sent for the commit is not sent for it again

        def call() -> str:
            head = self._client.refs(repo)[0][revision]
            if not (difference := self._difference(publication, head)):
                return head
            if head != parent:
                raise VerificationError(
                    f"{repo}: somebody else's commit {head} came to {revision} during this publication (it was at "
                    f"{parent}); it is left as it is. Look at it: when it may be replaced, run the same command again, "
                    "which sends nothing twice"
                )
            planned.extend(() if planned else operations(difference))
            return self._commit(repo, planned, title, revision, parent)

        head = self._client.attempt(f"commit to {revision} of {repo}", call)
        if difference := self._difference(publication, head):
            raise VerificationError(f"{repo}@{revision}: the hub does not hold what it was sent: {difference}")
        return head

    def _commit(self, repo: str, operations: list[Operation], title: str, revision: str, parent: str) -> str:
        """Make one commit; returns it.

        The hub copies between repositories of one storage region only, which nobody can ask it before.

        Raises:
            CopyRefusedError: it does not copy these files.
        """
        from huggingface_hub.errors import FileDuplicationError, HfHubHTTPError

        try:
            made = self._client.api.create_commit(
                repo, operations, commit_message=title, revision=revision, parent_commit=parent
            )
        except FileDuplicationError as error:
            raise CopyRefusedError(f"{repo}: {redact(str(error).splitlines()[0].rstrip(':'))}") from None
        except HfHubHTTPError as error:
            status, path = error.response.status_code, error.response.url.path
            if status in TRANSIENT_STATUS or not path.endswith("/lfs-files/duplicate"):
                raise
            raise CopyRefusedError(f"{repo}: the hub does not copy from another repository (HTTP {status})") from None
        return str(made.oid)

    def _send(
        self, publication: Publication, siblings: tuple[str, ...], progress: Tracker, difference: Difference
    ) -> list[Operation]:
        """Operations for the branch, with the bytes of LFS files sent already."""
        from huggingface_hub import CommitOperationCopy

        wanted = [publication.by_path[path] for path in (*difference.missing, *difference.changed)]
        elsewhere = self._held_by(siblings)
        operations: list[Operation] = list(_deletions(difference))
        operations += [
            CommitOperationCopy(
                src_path_in_repo=path,
                path_in_repo=file.path,
                src_repo_id=repo,
                src_repo_type="model",
                src_revision=commit,
            )
            for file in wanted
            if file.sha256 in elsewhere
            for repo, commit, path in [elsewhere[file.sha256]]
        ]
        copied = sum(file.size for file in wanted if file.sha256 in elsewhere)
        progress.add(publication.bytes - sum(file.size for file in wanted) + copied)
        for batch in _batches([file for file in wanted if file.sha256 not in elsewhere]):
            operations += self._send_batch(publication, f"publish-{publication.digest[:12]}", batch)
            progress.add(sum(file.size for file in batch))
        return operations

    def _send_batch(self, publication: Publication, branch: str, batch: list[PublishedFile]) -> list[Operation]:
        from huggingface_hub import CommitOperationAdd

        additions = [CommitOperationAdd(file.path, _content(file)) for file in batch]
        names = batch[0].path if len(batch) == 1 else f"{batch[0].path} and {len(batch) - 1} more"
        self._client.attempt(
            f"send {names}",
            lambda: self._client.api.preupload_lfs_files(
                publication.repo, additions, revision=branch, free_memory=False
            ),
        )
        for file, addition in zip(batch, additions, strict=True):
            # The client hashed what it sent; that it is what was proved is decided here, before anything is committed.
            info = addition.upload_info
            if info.is_hashed and info.sha256.hex() != file.sha256:
                raise VerificationError(f"{file.path}: not what the manifest says; changed since")
        return list(additions)

    def _take_from(self, publication: Publication, branch: str, difference: Difference) -> list[Operation]:
        """Operations for main: LFS files by name from the branch, the small ones again."""
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy

        head = self._client.refs(publication.repo)[0][branch]
        lfs = {file.path for file in self._client.list_files(publication.repo, head) if file.sha256 is not None}
        operations: list[Operation] = list(_deletions(difference))
        for path in (*difference.missing, *difference.changed):
            if path in lfs:
                operations.append(CommitOperationCopy(src_path_in_repo=path, path_in_repo=path, src_revision=head))
            else:
                operations.append(CommitOperationAdd(path, read_whole(publication.by_path[path])))
        return operations

    def _held_by(self, siblings: tuple[str, ...]) -> dict[str, tuple[str, str, str]]:
        """SHA-256 -> (repository, commit, path) of the LFS files on the main branches of `siblings` that exist."""
        held: dict[str, tuple[str, str, str]] = {}
        for repo in siblings:
            if self._client.attempt(f"look at {repo}", partial(self._client.api.repo_exists, repo)):
                commit = self._client.refs(repo)[0][MAIN]
                held |= {
                    file.sha256: (repo, commit, file.path)
                    for file in self._client.list_files(repo, commit)
                    if file.sha256 is not None
                }
        return held

    def _tag(self, repo: str, tag: str, commit: str) -> None:
        def call() -> None:
            there = self._client.refs(repo)[1].get(tag)
            if there is None:
                self._client.api.create_tag(repo, tag=tag, revision=commit)
            elif there != commit:
                raise VerificationError(
                    f"{repo}: tag {tag} is at {there[:12]}, not {commit[:12]}; a tag is never moved"
                )

        self._client.attempt(f"tag {tag}", call)

    def _drop_branch(self, repo: str, branch: str) -> None:
        def call() -> None:
            if branch in self._client.refs(repo)[0]:
                self._client.api.delete_branch(repo, branch=branch)

        self._client.attempt(f"remove branch {branch}", call)


def _deletions(difference: Difference) -> Iterator[CommitOperationDelete]:
    from huggingface_hub import CommitOperationDelete

    for path in difference.extra:
        yield CommitOperationDelete(path, is_folder=False)


def _content(file: PublishedFile) -> bytes | str:
    if isinstance(file.origin, bytes) or file.size < _WHOLE_BYTES:
        return read_whole(file)
    return str(file.origin)


def _batches(files: list[PublishedFile]) -> Iterator[list[PublishedFile]]:
    batch: list[PublishedFile] = []
    for file in files:
        if batch and (len(batch) == _BATCH_FILES or sum(f.size for f in batch) + file.size > _BATCH_BYTES):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch
