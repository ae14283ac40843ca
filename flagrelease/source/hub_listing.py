"""What a hub's listing states for the files of a revision, asked once by the hub's own client.

A machine without a network converts all the same: whatever keeps an answer away is returned as a remark.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING

from flagrelease.errors import NetworkError
from flagrelease.retry import TRANSIENT_STATUS, Obstacle, Patience, seconds_asked
from flagrelease.source.digests import Claim, Claims, claim

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_SECONDS = 10.0  # that Hugging Face has for its answer
_PATIENCE = Patience(attempts=3, longest_wait=10.0)  # a conversion does without the answer, so it is not worth more


def listed_claims(repo: str, revision: str) -> tuple[Claims, str]:
    """The digests of `repo` at `revision`, from Hugging Face or, where that has no answer, from ModelScope.

    Returns:
        The claims by path, and a remark: which hub listed them, or why none did.
    """
    remarks = []
    for title, package, ask in (
        ("Hugging Face", "huggingface_hub", _ask_huggingface),
        ("ModelScope", "modelscope_hub", _ask_modelscope),
    ):
        if importlib.util.find_spec(package) is None:
            remarks.append(f"{title} was not asked ({package} is not installed)")
            continue
        claims, reason = ask(repo, revision)
        if claims:
            return claims, f"{title} lists {len(claims)} files of {repo} at {revision[:12]} with their digests"
        remarks.append(f"{title} did not list {repo} at {revision[:12]} ({reason})")
    return {}, "; ".join(remarks)


def _ask_huggingface(repo: str, revision: str) -> tuple[Claims, str]:
    """One request, repeated only if the hub is busy: without a network `list_repo_tree` would try for half a minute."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    found: Claims = {}

    def busy(error: Exception) -> Obstacle | None:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in TRANSIENT_STATUS:
            return Obstacle(f"HTTP {error.response.status_code}", seconds_asked(error.response.headers))
        return None

    def call() -> list[RepoSibling]:
        return HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=_SECONDS).siblings or []

    try:
        files = _PATIENCE.wait_out(f"list {repo}", call, (HfHubHTTPError,), busy)
    except NetworkError as error:
        return {}, str(error)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, httpx2.HTTPError, OSError) as error:
        return {}, type(error).__name__
    for file in files:
        one = claim(file.lfs.sha256 if file.lfs else file.blob_id or "", "huggingface")
        found |= {file.rfilename: (one,)} if one else {}
    return found, "no digests"


def _ask_modelscope(repo: str, revision: str) -> tuple[Claims, str]:
    from modelscope_hub import HubApi, HubError

    retries = logging.getLogger("modelscope_hub.legacy_api")  # warns of each of its retries, 7 s without a network
    spoke, retries.disabled = retries.disabled, True
    try:
        files = HubApi().list_repo_files(repo, "model", revision=revision)
    except (HubError, OSError) as error:
        return {}, type(error).__name__
    finally:
        retries.disabled = spoke
    return {file.path: (Claim("sha256", file.sha256, "modelscope"),) for file in files if file.sha256}, "no digests"
