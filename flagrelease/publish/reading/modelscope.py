"""Reading from ModelScope by its own client: listing, tags, ranges, and which failures are waited out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from flagrelease.errors import FlagReleaseError, NetworkError, VerificationError
from flagrelease.publish.hubs.modelscope import MODELSCOPE
from flagrelease.publish.reading.extra import require
from flagrelease.publish.reading.remote import RemoteFile, RepositoryFacts, advice, range_header, take, unseen
from flagrelease.redaction import redact, redact_logs_of
from flagrelease.retry import TRANSIENT_STATUS, Obstacle, Patience

Result = TypeVar("Result")

MASTER = "master"
_CHUNK = 1 << 20


class ModelScopeClient:
    """Reading from one hub. The token is the client's own business: MODELSCOPE_API_TOKEN, or its login."""

    hub = MODELSCOPE

    def __init__(self, endpoint: str | None = None, patience: Patience | None = None) -> None:
        """`endpoint`: another hub than MODELSCOPE_ENDPOINT says."""
        require("modelscope_hub")
        from modelscope_hub import HubApi

        redact_logs_of("modelscope_hub")
        self.api = HubApi(endpoint=endpoint)
        self._patience = patience or Patience()

    def pin(self, repo: str, revision: str | None) -> str:
        """The tag itself: this hub has tags, but no commits to read by."""
        if not self.attempt(f"look at {repo}", lambda: self.api.repo_exists(repo, "model")):
            raise VerificationError(unseen(self.hub, repo))
        tags = self.tags(repo)
        if revision is not None and revision != MASTER and revision not in tags:
            raise VerificationError(f"{repo}: no tag {revision!r}; it has {', '.join(sorted(tags)) or 'none'}")
        return revision or MASTER

    def describe(self, repo: str, revision: str) -> RepositoryFacts:
        """Both belong to the repository here, not to a revision of it."""
        info = self.attempt(f"look at {repo}", lambda: self.api.get_repo(repo, "model"))
        return RepositoryFacts(getattr(info.visibility, "name", str(info.visibility)).lower(), info.license or None)

    def list_files(self, repo: str, revision: str) -> list[RemoteFile]:
        """All files of a revision with their digests; nothing is downloaded."""
        files = self.attempt(
            f"list {repo}@{revision}", lambda: self.api.list_repo_files(repo, "model", revision=revision)
        )
        return [
            RemoteFile(file.path, file.size, file.sha256 or None)
            for file in files
            if file.path and file.type not in ("tree", "dir", "directory")
        ]

    def tags(self, repo: str) -> set[str]:
        """Their names."""
        _, tags = self.attempt(f"tags of {repo}", lambda: self.api.legacy.list_revisions_detail(repo, "model"))
        return {tag["Revision"] for tag in tags}

    def read(self, repo: str, revision: str, path: str, begin: int, count: int) -> bytes:
        """Bytes of a file by a ranged request."""

        def call() -> bytes:
            headers = range_header(begin, count)
            with self.api.legacy.download_stream(repo, "model", path, revision, headers) as response:
                return take(response.status_code, response.headers, response.iter_content(_CHUNK), begin, count)

        return self.attempt(f"read {path} of {repo}", call)

    def attempt(self, what: str, call: Callable[[], Result]) -> Result:
        """The result of `call`, with what passes waited out.

        Raises:
            NetworkError: the hub refuses, or it did not pass.
        """
        from modelscope_hub import HubError

        try:
            return self._patience.wait_out(what, call, (HubError, OSError), _obstacle)
        except FlagReleaseError:
            raise
        except HubError as error:
            status = getattr(error, "status_code", None)
            raise NetworkError(f"{what}: {_reason(error)}{advice(self.hub, status)}") from None


def _obstacle(error: Exception) -> Obstacle | None:
    import requests
    from modelscope_hub import APIError, HubError

    if isinstance(error, APIError) and error.status_code in TRANSIENT_STATUS:
        return Obstacle(_reason(error), getattr(error, "retry_after", None))
    if isinstance(error, HubError):
        return Obstacle(_reason(error)) if error.retryable else None
    if isinstance(error, requests.ConnectionError | requests.Timeout | ConnectionError | TimeoutError):
        return Obstacle(type(error).__name__)
    return None


def _reason(error: Exception) -> str:
    """Kind, status and the hub's words; addresses go, since they may be presigned."""
    status = getattr(error, "status_code", None)
    words = redact(str(getattr(error, "message", error)).partition("://")[0].partition("\n")[0])
    return f"{type(error).__name__}{'' if status is None else f' {status}'}: {words}"
