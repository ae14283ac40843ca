"""A staged release, fetched as far as publishing reads it: documents whole, of tensor files their headers.

The folder that is made has every file of the manifest with its size; what follows a tensor file's header is a hole.
Nothing of a hole is ever published: the hub copies those files by their digests, and a file that had to be sent from
here would be refused, because it has not the digest that the manifest says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flagrelease.errors import UsageError, VerificationError
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.hubs.names import is_staged
from flagrelease.publish.listing import HUB_FILES
from flagrelease.publish.online import RECORD_BYTES, read_listed
from flagrelease.publish.reading.remote import Address, HubReader, RemoteFile
from flagrelease.records.manifest import MANIFEST_NAME, FileRecord, parse_manifest
from flagrelease.shard.header import header_length

_LENGTH_BYTES = 8


@contextmanager
def fetched(client: HubReader, address: Address) -> Iterator[Path]:
    """A folder with what publishing reads of the staged release, which is removed in the end.

    Raises:
        UsageError: `address` is no place of `convert --disk` on Hugging Face.
        VerificationError: it is not complete, or the hub does not hold what the manifest says.
        NetworkError: the hub does not answer.
    """
    if address.hub is not HUGGING_FACE or not is_staged(address.repo, address.revision):
        raise UsageError(
            f"{address.hub.scheme}://{address.repo}: only what convert --disk has put on a branch of Hugging Face is "
            "published from where it is; fetch anything else, and publish the folder"
        )
    revision = client.pin(address.repo, address.revision)
    listed = {file.path: file for file in client.list_files(address.repo, revision) if file.path not in HUB_FILES}
    if MANIFEST_NAME not in listed:
        raise VerificationError(f"{address.repo}@{address.revision}: no {MANIFEST_NAME}: its conversion did not finish")
    content = read_listed(client, address.repo, revision, listed[MANIFEST_NAME], RECORD_BYTES)
    manifest = parse_manifest(content, f"{address.repo}/{MANIFEST_NAME}")
    with tempfile.TemporaryDirectory(prefix="flagrelease-") as name:
        folder = Path(name)
        (folder / MANIFEST_NAME).write_bytes(content)
        for file in manifest.files:
            if (there := listed.get(file.path)) is None or there.size != file.size:
                raise VerificationError(f"{address.repo}@{address.revision}: {file.path}: lost or changed")
            _fetch(client, address.repo, revision, file, there, folder / file.path)
        yield folder


def _fetch(client: HubReader, repo: str, revision: str, file: FileRecord, there: RemoteFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not file.path.endswith(".safetensors"):
        path.write_bytes(read_listed(client, repo, revision, there, RECORD_BYTES))
        return
    if there.sha256 != file.sha256:
        raise VerificationError(f"{repo}/{file.path}: changed")
    head = client.read(repo, revision, file.path, 0, min(_LENGTH_BYTES, file.size))
    length = header_length(head, path, file.size)
    with path.open("wb") as hole:
        hole.write(client.read(repo, revision, file.path, 0, _LENGTH_BYTES + length))
        hole.truncate(file.size)
