"""Publishing to Hugging Face: everything on a branch, checked there, then one commit on main, checked, then the tag.

Nothing is kept on this side: each run asks the hub what is there and does what is left, so the same command resumes
after anything. The files are sent once. The commit on main names blobs that the hub has already, and only small files
that git keeps itself are in its body again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from flagrelease.console import Tracker
from flagrelease.errors import NetworkError, UsageError, VerificationError
from flagrelease.publish.listing import HUB_FILES, Difference, compare
from flagrelease.publish.publication import Publication
from flagrelease.publish.reading.huggingface import MAIN, HuggingFaceClient
from flagrelease.publish.upload.client import refuse_another_models
from flagrelease.publish.upload.huggingface_files import send, take_from
from flagrelease.records.manifest import MANIFEST_NAME
from flagrelease.redaction import redact
from flagrelease.retry import TRANSIENT_STATUS

if TYPE_CHECKING:
    from flagrelease.publish.upload.huggingface_files import Operation


class CopyRefusedError(NetworkError):
    """The hub does not copy files from another repository; they have to be sent."""


class HuggingFace(HuggingFaceClient):
    """Reading from one hub and publishing to it."""

    def publish(self, publication: Publication, progress: Tracker) -> str:
        """Make the repository's main hold exactly this publication, and tag it; returns the commit on main.

        Files that the publication's siblings hold are copied on the server instead of being sent. A publication that
        has its tag already is brought back to main from there.

        Raises:
            UsageError: the repository has another visibility or licence, or holds something else.
            VerificationError: a file is not what the manifest says, the hub does not hold what it was sent, or
                somebody else committed to main meanwhile.
            NetworkError: the hub did not do it; what did pass stays, and the same command resumes.
        """
        repo, branch = publication.repo, f"publish-{publication.digest[:12]}"
        self.ensure_repository(repo, publication.private, publication.records.licence)
        branches, tags = self.refs(repo)
        commit, tagged = branches[MAIN], tags.get(publication.version)
        if tagged is not None:
            self._check(publication, tagged)
        self.refuse_foreign(repo, commit, publication.records.recipe.model)
        if replaced := self._difference(publication, commit):
            whole = tagged
            if whole is None:
                whole = self._stage(publication, branch, progress)
            else:
                progress.add(publication.bytes)
                said = f"{repo}: main gets {publication.version} back from its tag ({replaced})"
                print(said, file=sys.stderr, flush=True)
            commit = self._bring(publication, MAIN, commit, partial(take_from, self, publication, whole))
        else:
            progress.add(publication.bytes)
        if tagged is None:
            self._tag(repo, publication.version, commit)
        self._drop_branch(repo, branch)
        self._require_main(publication, commit)
        return commit

    def ensure_repository(self, repo: str, private: bool, spdx: str | None) -> None:
        """Create the repository with its visibility; one that is there must have visibility and licence right.

        Hugging Face reads the licence from the card, so a repository that nothing was published to has none. `spdx` is
        None where nobody has said what it is.
        """

        def call() -> None:
            if not self.api.repo_exists(repo):
                # Not exist_ok: a reply that was lost is noticed by asking again.
                self.api.create_repo(repo, private=private)

        self.attempt(f"create {repo}", call)
        facts, wanted = self.describe(repo, MAIN), "private" if private else "public"
        if facts.visibility != wanted:
            raise UsageError(f"{repo}: is {facts.visibility}; this publication is {wanted}")
        if spdx is not None and facts.licence not in (None, licence := self.hub.licence(spdx)):
            raise UsageError(f"{repo}: has licence {facts.licence!r}; this is {licence!r}")

    def refuse_foreign(self, repo: str, main: str, model: str | None) -> None:
        """Leave a repository alone that holds something else on main than a publication of `model`, if that is known.

        Raises:
            UsageError: it does.
        """
        listed = self.list_files(repo, main)
        there = {file.path for file in listed} - HUB_FILES
        if there and MANIFEST_NAME not in there:
            raise UsageError(
                f"{repo}: main holds {len(there)} files without a {MANIFEST_NAME}, so nothing that "
                "flagrelease published; name another repository or empty it"
            )
        if model is not None:
            refuse_another_models(self, repo, main, listed, model)

    def _stage(self, publication: Publication, branch: str, progress: Tracker) -> str:
        """Send everything to the branch, which an earlier run may have left; returns the branch's commit."""
        head = self.ensure_branch(publication.repo, branch)
        try:
            return self._bring(
                publication, branch, head, partial(send, self, publication, branch, publication.siblings, progress)
            )
        except CopyRefusedError as refusal:
            print(f"{refusal}; the files are sent instead", file=sys.stderr, flush=True)
            progress.to(0)
            return self._bring(publication, branch, head, partial(send, self, publication, branch, (), progress))

    def ensure_branch(self, repo: str, branch: str) -> str:
        """Begin a branch at main, unless it is there; returns its commit."""

        def call() -> str:
            if branch not in self.refs(repo)[0]:
                self.api.create_branch(repo, branch=branch, revision=MAIN)
            return self.refs(repo)[0][branch]

        return self.attempt(f"branch {branch}", call)

    def _difference(self, publication: Publication, revision: str) -> Difference:
        return compare(publication.by_path, self.list_files(publication.repo, revision))

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
        planned: list[Operation] = []  # what was sent for the commit is not sent for it again

        def call() -> str:
            head = self.refs(repo)[0][revision]
            if not (difference := self._difference(publication, head)):
                return head
            if head != parent:
                raise VerificationError(
                    f"{repo}: somebody else's commit {head} came to {revision} during this publication (it was at "
                    f"{parent}); it is left as it is. Look at it: when it may be replaced, run the same command again, "
                    "which sends nothing twice"
                )
            planned.extend(() if planned else operations(difference))
            return self._commit(repo, planned, publication.title, revision, parent)

        head = self.attempt(f"commit to {revision} of {repo}", call)
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
            made = self.api.create_commit(
                repo, operations, commit_message=title, revision=revision, parent_commit=parent
            )
        except FileDuplicationError as error:
            words = redact(str(error).partition("\n")[0].rstrip(":"))
            raise CopyRefusedError(f"{repo}: {words}") from None
        except HfHubHTTPError as error:
            status, path = error.response.status_code, error.response.url.path
            if status in TRANSIENT_STATUS or not path.endswith("/lfs-files/duplicate"):
                raise
            raise CopyRefusedError(f"{repo}: the hub does not copy from another repository (HTTP {status})") from None
        return str(made.oid)

    def _require_main(self, publication: Publication, commit: str) -> None:
        """Nobody else may have moved main while this publication was made."""
        if (head := self.refs(publication.repo)[0][MAIN]) != commit:
            raise VerificationError(
                f"{publication.repo}: somebody else's commit {head} came to main after this publication's commit "
                f"{commit}, which has the tag {publication.version}; main is left as it is. When it may be replaced, "
                "run the same command again"
            )

    def _tag(self, repo: str, tag: str, commit: str) -> None:
        def call() -> None:
            there = self.refs(repo)[1].get(tag)
            if there is None:
                self.api.create_tag(repo, tag=tag, revision=commit)
            elif there != commit:
                raise VerificationError(
                    f"{repo}: tag {tag} is at {there[:12]}, not {commit[:12]}; a tag is never moved"
                )

        self.attempt(f"tag {tag}", call)

    def _drop_branch(self, repo: str, branch: str) -> None:
        def call() -> None:
            if branch in self.refs(repo)[0]:
                self.api.delete_branch(repo, branch=branch)

        self.attempt(f"remove branch {branch}", call)
