"""Reading from Hugging Face by its own client: listing, references, ranges, and which failures are waited out."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

from flagrelease.errors import FlagReleaseError, NetworkError, UsageError, VerificationError
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.reading.extra import require
from flagrelease.publish.reading.remote import RemoteFile, RepositoryFacts, advice, range_header, take, unseen
from flagrelease.redaction import redact, redact_logs_of
from flagrelease.retry import TRANSIENT_STATUS, Obstacle, Patience, seconds_asked

Result = TypeVar("Result")

MAIN = "main"
_MOST_REDIRECTS = 8
_EXPIRED = (400, 401, 403, 404)  # what stores answer to a presigned address whose time is over
_XET_REFUSAL = re.compile(r"HTTP status client error \((\d{3})")  # in the text of a ConnectionError of hf_xet 1.8


class HuggingFaceClient:
    """Reading from one hub. The token is the client's own business: HF_TOKEN, or its login."""

    hub = HUGGING_FACE

    def __init__(self, endpoint: str | None = None, patience: Patience | None = None) -> None:
        """`endpoint`: another hub than HF_ENDPOINT says."""
        require("huggingface_hub")
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        redact_logs_of("huggingface_hub")
        self.api = HfApi(endpoint=endpoint)
        self._patience = patience or Patience()
        self._stores: dict[str, str] = {}  # address of a file -> where the hub said that its bytes are

    def pin(self, repo: str, revision: str | None) -> str:
        """The commit of a branch or tag; a commit as it is."""
        if not self.attempt(f"look at {repo}", lambda: self.api.repo_exists(repo)):
            raise VerificationError(unseen(self.hub, repo))
        if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
            return revision
        branches, tags = self.refs(repo)
        named = revision or MAIN
        if (commit := tags.get(named) or branches.get(named)) is None:
            raise VerificationError(f"{repo}: no tag {named!r}; it has {', '.join(tags) or 'none'}")
        return commit

    def describe(self, repo: str, revision: str) -> RepositoryFacts:
        """Hugging Face reads the licence from the card, so a repository without one has none."""
        info = self.attempt(f"look at {repo}", lambda: self.api.model_info(repo, revision=revision))
        licence = info.card_data.get("license") if info.card_data else None
        return RepositoryFacts("private" if info.private else "public", licence)

    def list_files(self, repo: str, revision: str) -> list[RemoteFile]:
        """All files of a revision with their digests; nothing is downloaded."""
        from huggingface_hub.hf_api import RepoFile

        def call() -> list[RemoteFile]:
            entries = self.api.list_repo_tree(repo, recursive=True, revision=revision)
            files = [entry for entry in entries if isinstance(entry, RepoFile)]
            return [
                RemoteFile(file.path, file.lfs.size, file.lfs.sha256)
                if file.lfs
                else RemoteFile(file.path, file.size, None, file.blob_id)
                for file in files
            ]

        return self.attempt(f"list {repo}@{revision}", call)

    def refs(self, repo: str) -> tuple[dict[str, str], dict[str, str]]:
        """Branches and tags, each name -> commit."""
        refs = self.attempt(f"refs of {repo}", lambda: self.api.list_repo_refs(repo))
        branches = {ref.name: ref.target_commit for ref in refs.branches}
        if MAIN not in branches:
            raise NetworkError(f"{repo}: has no branch {MAIN}")
        return branches, {ref.name: ref.target_commit for ref in refs.tags}

    def read(self, repo: str, revision: str, path: str, begin: int, count: int) -> bytes:
        """Read bytes of a file by a ranged request.

        The hub answers with the address of the store that has the file (S3, or the bridge to Xet), which is presigned
        and good for many ranges. It is kept until the store refuses it, since the hub limits how often it resolves.
        A token goes to the hub's own host only.
        """
        from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils._headers import build_hf_headers

        address = hf_hub_url(repo, path, revision=revision, endpoint=self.api.endpoint)

        def ask(where: str, own: bool, kept: str | None) -> bytes | str | None:
            """The bytes; or the address to which this one leads; or None, where a presigned one has expired."""
            headers = (build_hf_headers(token=self.api.token) if own else {}) | range_header(begin, count)
            with get_session().stream(
                "GET",
                where,
                headers=headers,
                follow_redirects=False,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,  # of a silence; the session itself would wait for ever
            ) as response:
                if response.is_redirect:
                    return urljoin(where, response.headers["location"])
                if where == kept and response.status_code in _EXPIRED:
                    return None
                if response.is_error:
                    response.read()
                hf_raise_for_status(response)
                return take(response.status_code, response.headers, response.iter_bytes(), begin, count)

        def call() -> bytes:
            kept = self._stores.get(address)
            where = kept or address
            for _ in range(_MOST_REDIRECTS):
                own = _host(where) == _host(address)
                found = ask(where, own, kept)
                if isinstance(found, bytes):
                    if not own:
                        self._stores[address] = where
                    return found
                if found is None:
                    self._stores.pop(address, None)
                    kept = None
                where = found or address
            raise NetworkError(f"read {path} of {repo}: {_MOST_REDIRECTS} redirects led to no file")

        return self.attempt(f"read {path} of {repo}", call)

    def attempt(self, what: str, call: Callable[[], Result]) -> Result:
        """The result of `call`, with what passes waited out.

        Raises:
            UsageError: there is no token where one is needed.
            NetworkError: the hub refuses, or it did not pass.
        """
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

        try:
            return self._patience.wait_out(what, call, (OSError, RuntimeError, httpx2.HTTPError), _obstacle)
        except FlagReleaseError:
            raise
        except LocalTokenNotFoundError:
            raise UsageError(f"{what}: no token; {self.hub.login}") from None
        except OfflineModeIsEnabled:
            raise NetworkError(f"{what}: HF_HUB_OFFLINE is set") from None
        except HfHubHTTPError as error:
            raise NetworkError(f"{what}: {_reason(error)}{advice(self.hub, error.response.status_code)}") from None
        except (ConnectionError, TimeoutError, PermissionError) as error:  # of Xet, whose client has no errors of HTTP
            if error.filename is not None:  # no: of a file of the release
                raise
            raise NetworkError(f"{what}: {redact(str(error))}") from None
        except RuntimeError as error:  # the client's "Error while uploading" around what the server said
            if not isinstance(error.__cause__, HfHubHTTPError):
                raise
            raise NetworkError(f"{what}: {_reason(error.__cause__)}") from None


def _host(address: str) -> tuple[str | None, int | None]:
    parts = urlsplit(address)
    return parts.hostname, parts.port


def _obstacle(error: Exception) -> Obstacle | None:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        if error.response.status_code in TRANSIENT_STATUS:
            return Obstacle(_reason(error), seconds_asked(error.response.headers))
        # Somebody committed in between, or this did and the reply was lost: look again.
        return Obstacle(_reason(error)) if error.response.status_code in (409, 412) else None
    if isinstance(error, httpx2.HTTPStatusError):
        status = error.response.status_code
        asked = seconds_asked(error.response.headers)
        return Obstacle(f"HTTP {status}", asked) if status in TRANSIENT_STATUS else None
    if (refused := _XET_REFUSAL.search(str(error))) and int(refused[1]) not in TRANSIENT_STATUS:
        return None
    if isinstance(error, httpx2.TransportError | ConnectionError | TimeoutError):
        return Obstacle(f"{type(error).__name__}: {error}")
    return None


def _reason(error: Exception) -> str:
    """Status and the server's words, without addresses: a presigned one is a secret."""
    from huggingface_hub.errors import HfHubHTTPError

    assert isinstance(error, HfHubHTTPError)
    said = f": {redact(error.server_message)}" if error.server_message else ""
    return f"HTTP {error.response.status_code}{said}"
