"""What a hub's listing states binds parts to one another, and has a digest of every tensor file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flagrelease.convert.sharing.part_folder import Done, _listing_digest, require_same
from flagrelease.errors import CheckpointError, ResourceError
from flagrelease.publish.hubs.registry import hub_by_scheme
from flagrelease.publish.reading.remote import RemoteFile, parse_address
from flagrelease.shard.folder import FolderFiles
from flagrelease.source.hub import files as hub_files
from flagrelease.source.hub.files import HubFiles, open_hub_files


def listed(digest: str | None, readme: str = "9") -> HubFiles:
    files = [RemoteFile("a.safetensors", 8, "1" * 64), RemoteFile("b.safetensors", 8, digest)]
    every = {file.path: file for file in (*files, RemoteFile("README.md", 8, readme * 64))}
    return HubFiles(hub_by_scheme("modelscope"), "an-owner/model", "v1", every)


def done(files: Any) -> Done:
    return Done(tool="0", part="1/2", checkpoint="c", plans={}, checked=(), listing=_listing_digest(files))


def test_parts_of_a_moved_tag_are_not_merged(tmp_path: Path) -> None:
    """The identity samples tensors, and a part hashes its own files: neither sees what the other part read."""
    before, moved = done(listed("2" * 64)), done(listed("3" * 64))
    require_same(before, done(listed("2" * 64, readme="8")), tmp_path)
    with pytest.raises(ResourceError, match="other files on the hub"):
        require_same(before, moved, tmp_path)


def test_a_folder_has_no_listing(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    assert done(FolderFiles(tmp_path)).listing is None


class Client:
    """Of a hub that lists what it is given."""

    def __init__(self, files: HubFiles) -> None:
        self.files = files

    def pin(self, repo: str, revision: str | None) -> str:
        return "v1"

    def list_files(self, repo: str, revision: str) -> list[RemoteFile]:
        return list(self.files.listed.values())


def test_a_tensor_file_without_a_digest_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    address = parse_address("modelscope://an-owner/model@v1")
    assert address is not None
    monkeypatch.setattr(hub_files, "open_reader", lambda hub: Client(listed("2" * 64)))
    assert open_hub_files(address).stated["b.safetensors"] == "2" * 64
    monkeypatch.setattr(hub_files, "open_reader", lambda hub: Client(listed(None)))
    with pytest.raises(CheckpointError, match=r"b\.safetensors: the hub's listing states no digest"):
        open_hub_files(address)
