"""Paths in a manifest: whoever reads one writes or hashes files there, so bad ones are refused when it is read.

Before, only `verify` looked: a crafted manifest made `publish` write `../dropped.sh` beside its target.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from flagrelease.cli import main
from flagrelease.errors import VerificationError
from flagrelease.records.manifest import parse_manifest, read_manifest

BAD = [
    "", ".", "..", "../dropped.sh", "a/../../dropped.sh", "/tmp/dropped.sh", "//x", "a//b", "a/", "./a", "a/./b",
    "..\\dropped.sh", "a\\b", "C:\\x", "C:/x", "c:x", "a\nb", "a\0b", "a\x1b[31mb", "a\x7f", "a\u2028b", "a\udc80b",
    ".flagrelease/journal", ".Flagrelease/x", ".git/hooks/pre-commit", "manifest.json",
]  # fmt: skip


def crafted(release: Path, *paths: str) -> bytes:
    document = json.loads((release / "manifest.json").read_bytes())
    document["files"] += [{"path": path, "size": 2, "sha256": hashlib.sha256(b"#!").hexdigest()} for path in paths]
    return json.dumps(document).encode()


@pytest.mark.parametrize("path", BAD, ids=ascii)
def test_a_path_that_leaves_the_release_is_refused_when_the_manifest_is_read(release: Path, path: str) -> None:
    with pytest.raises(VerificationError, match=r"manifest\.json: "):
        parse_manifest(crafted(release, path), "manifest.json")


@pytest.mark.parametrize("paths", [("LICENSE",), ("x", "x"), ("a", "a/b"), ("config.json/x",)], ids=str)
def test_a_path_listed_twice_or_a_file_that_is_a_folder_is_refused(release: Path, paths: tuple[str, ...]) -> None:
    with pytest.raises(VerificationError, match="is listed twice"):
        parse_manifest(crafted(release, *paths), "manifest.json")


@pytest.mark.parametrize("path", ["模型/说明.md", "a b.txt", "...", "a..b", ".hidden", "x.flagrelease/y", "été.json"])
def test_plain_paths_in_any_language_are_read(release: Path, path: str) -> None:
    assert path in {file.path for file in parse_manifest(crafted(release, path), "m").files}


def test_a_crafted_manifest_writes_nothing_beside_the_target(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dropped.sh").write_bytes(b"#!")  # what the manifest's path leads to, seen from the release
    (release / "manifest.json").write_bytes(crafted(release, "../dropped.sh"))
    target = tmp_path / "there" / "out"
    words = ["publish", str(release), "--chip", "nvidia", "--to", str(target), "--allow-unvalidated", "--yes"]
    assert main(words) == 5
    assert "'../dropped.sh' is not a plain path inside the release" in capsys.readouterr().err
    assert not target.parent.exists()
    assert main(["verify", str(release)]) == 5
    with pytest.raises(VerificationError):
        read_manifest(release)
