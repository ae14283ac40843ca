"""Benchmark data from Hugging Face, for those who have no file of their own. GPQA is gated: the hub wants a login."""

from __future__ import annotations

from pathlib import Path

from flagrelease.errors import NetworkError, ResourceError
from flagrelease.extras import remedy
from flagrelease.records.rules import BenchmarkRules
from flagrelease.redaction import redact


def download(rules: BenchmarkRules, endpoint: str | None = None, cache: Path | None = None) -> tuple[list[Path], str]:
    """The files that the rules name, and the commit they are of: `read_exam(rules, *download(rules))`.

    Files that are in the cache already are used if the hub cannot be reached. The hub's client waits out a busy hub by
    itself (six tries in half a minute, or what `Retry-After` asks for), so `retry.Patience` is not put around it.

    Args:
        endpoint: another hub than HF_ENDPOINT says.
        cache: another folder than the hub client's own.

    Raises:
        ResourceError: the client is not installed.
        NetworkError: the hub does not give them; the message says how to get access.
    """
    try:
        import httpx2
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise ResourceError(f"downloading needs {error.name}: {remedy('eval')}") from error
    place = f"datasets/{rules.dataset}@{rules.revision}"
    paths, commit = [], rules.revision
    for file in rules.files:
        try:
            path = hf_hub_download(
                rules.dataset, file, repo_type="dataset", revision=commit, endpoint=endpoint, cache_dir=cache
            )
        except GatedRepoError:
            raise NetworkError(
                f"{place}: access is given by its owners; ask for it on its page and run `hf auth login`, or give a "
                f"file of your own with --data"
            ) from None
        except LocalEntryNotFoundError as error:  # whatever kept the client from asking is its cause
            if isinstance(error.__cause__, HfHubHTTPError):
                raise NetworkError(f"{place}: {file}: {_status(error.__cause__)}") from None
            why = type(error.__cause__ or error).__name__
            raise NetworkError(
                f"{place}: the hub cannot be reached ({why}); give a file of your own with --data"
            ) from None
        except HfHubHTTPError as error:
            raise NetworkError(f"{place}: {file}: {_status(error)}") from None
        except httpx2.HTTPError as error:
            raise NetworkError(f"{place}: {file}: {type(error).__name__}: {redact(str(error))}") from None
        paths.append(Path(path))
        commit = _commit(paths[-1], file)  # the further files of the same one
    return paths, commit


def _status(error: Exception) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    assert isinstance(error, HfHubHTTPError)
    return f"HTTP {error.response.status_code}"


def _commit(path: Path, file: str) -> str:
    """The client lays files out as snapshots/COMMIT/FILE."""
    return path.parents[len(Path(file).parts) - 1].name
