"""The operations of a commit on Hugging Face, and the sending of the LFS files that they name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from flagrelease.console import Tracker
from flagrelease.errors import VerificationError
from flagrelease.publish.listing import Difference, read_whole
from flagrelease.publish.publication import Publication, PublishedFile
from flagrelease.publish.reading.huggingface import MAIN, HuggingFaceClient

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete

# Sent together before progress is shown; files inside go in parallel.
_BATCH_BYTES = 8 * 10**9
_BATCH_FILES = 100
# Smaller files are read whole and checked before they are sent; the hub keeps those that are not LFS in git itself.
_WHOLE_BYTES = 10 * 10**6
# Without this the client leaves out what a .gitignore names, one among the files or one on the hub, and says nothing.
_NOTHING_IGNORED = "# flagrelease publishes every file of a release\n"


def send(
    client: HuggingFaceClient,
    publication: Publication,
    branch: str,
    siblings: tuple[str, ...],
    progress: Tracker,
    difference: Difference,
) -> list[Operation]:
    """Operations that bring `branch` to the publication, with the bytes of LFS files sent already."""
    from huggingface_hub import CommitOperationCopy

    wanted = [publication.by_path[path] for path in (*difference.missing, *difference.changed)]
    elsewhere = _held_by(client, siblings)
    operations: list[Operation] = list(_deletions(difference))
    operations += [
        CommitOperationCopy(
            src_path_in_repo=path,
            path_in_repo=file.path,
            src_repo_id=None if repo == publication.repo else repo,
            src_repo_type=None if repo == publication.repo else "model",
            src_revision=commit,
        )
        for file in wanted
        if file.sha256 in elsewhere
        for repo, commit, path in [elsewhere[file.sha256]]
    ]
    copied = sum(file.size for file in wanted if file.sha256 in elsewhere)
    progress.add(publication.bytes - sum(file.size for file in wanted) + copied)
    for batch in _batches([file for file in wanted if file.sha256 not in elsewhere]):
        operations += send_batch(client, publication.repo, branch, batch)
        progress.add(sum(file.size for file in batch))
    return operations


def take_from(
    client: HuggingFaceClient, publication: Publication, whole: str, difference: Difference
) -> list[Operation]:
    """Operations for main: LFS files by name from the commit `whole`, the small ones again."""
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy

    lfs = {file.path for file in client.list_files(publication.repo, whole) if file.sha256 is not None}
    wanted = (*difference.missing, *difference.changed)
    additions = [CommitOperationAdd(path, read_whole(publication.by_path[path])) for path in wanted if path not in lfs]
    _announce(client, publication.repo, MAIN, additions)
    return [
        *_deletions(difference),
        *(CommitOperationCopy(src_path_in_repo=p, path_in_repo=p, src_revision=whole) for p in wanted if p in lfs),
        *additions,
    ]


def send_batch(
    client: HuggingFaceClient, repo: str, branch: str, batch: list[PublishedFile]
) -> list[CommitOperationAdd]:
    """The operations of files whose bytes, if they are LFS, are sent now.

    Raises:
        VerificationError: a file is not what its digest says.
        NetworkError: the hub did not take one.
    """
    from huggingface_hub import CommitOperationAdd

    additions = [CommitOperationAdd(file.path, _content(file)) for file in batch]
    names = batch[0].path if len(batch) == 1 else f"{batch[0].path} and {len(batch) - 1} more"
    client.attempt(f"send {names}", partial(_announce, client, repo, branch, additions))
    for file, addition in zip(batch, additions, strict=True):
        # The client hashed what it sent; that it is what was proved is decided here, before anything is committed.
        info = addition.upload_info
        if info.is_hashed and info.sha256.hex() != file.sha256:
            raise VerificationError(f"{file.path}: not what the manifest says; changed since")
    return additions


def _announce(client: HuggingFaceClient, repo: str, revision: str, additions: list[CommitOperationAdd]) -> None:
    """Ask the hub how it takes each file, and send those that are LFS."""
    client.api.preupload_lfs_files(
        repo, additions, revision=revision, free_memory=False, gitignore_content=_NOTHING_IGNORED
    )


def _held_by(client: HuggingFaceClient, siblings: tuple[str, ...]) -> dict[str, tuple[str, str, str]]:
    """SHA-256 -> (repository, commit, path) of the LFS files of `siblings` that exist: on their branches, or main."""
    held: dict[str, tuple[str, str, str]] = {}
    for sibling in reversed(siblings):  # the first one counts
        repo, _, branch = sibling.partition("@")
        if client.attempt(f"look at {repo}", partial(client.api.repo_exists, repo)):
            if (commit := client.refs(repo)[0].get(branch or MAIN)) is None:
                continue
            held |= {
                file.sha256: (repo, commit, file.path)
                for file in client.list_files(repo, commit)
                if file.sha256 is not None
            }
    return held


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
