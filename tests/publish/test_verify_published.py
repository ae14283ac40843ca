"""`verify` of a published folder: it holds more than its manifest says, and all of it is checked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from publish_release import Converted

from flagrelease.publish.publish import publish
from flagrelease.verify.verify import verify_release

STATEMENT = "provenance.intoto.json"


@pytest.fixture
def folder(converted: Converted, tmp_path: Path) -> Path:
    """A publication of its own, whose files are no links to those of the release."""
    publish(converted.release, converted.chip, str(tmp_path / "linked"), allow_unvalidated=True, yes=True)
    copy = tmp_path / "published"
    for path in sorted((tmp_path / "linked").rglob("*")):
        if path.is_file():
            target = copy / path.relative_to(tmp_path / "linked")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return copy


def findings(folder: Path) -> list[str]:
    return [str(finding) for finding in verify_release(folder).check("files").findings]


def test_a_published_folder_is_proved_like_the_release(converted: Converted, folder: Path) -> None:
    report = verify_release(folder, converted.source)
    assert report.passed, report.to_json().decode()
    assert {check.status for check in report.checks} == {"pass"}
    held = [path for path in folder.rglob("*") if path.is_file()]
    assert len(held) > len([path for path in converted.release.rglob("*") if path.is_file()])
    assert report.check("files").checked == len(held) - 2  # manifest and statement are what the others are compared to
    assert report.manifest_sha256 == verify_release(converted.release).manifest_sha256


@pytest.mark.parametrize("name", ["README.md", "run_mp8.sh", "run_node.sh", "Containerfile", "compose.yaml"])
def test_an_added_file_that_is_lost_or_changed_is_found(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-2] + b"#\n")
    (found,) = findings(folder)
    assert found.startswith(f"{name}: has SHA-256")
    (folder / name).unlink()
    assert findings(folder) == [f"{name}: in the manifest and provenance statement, but not in the folder"]


def test_a_file_of_the_release_is_still_the_manifests(folder: Path) -> None:
    path = folder / "model3-mp8.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert findings(folder)[0].startswith("model3-mp8.safetensors: has SHA-256")


def test_a_file_more_is_found(folder: Path) -> None:
    (folder / "more.txt").write_text("")
    (folder / "sub").mkdir()
    (folder / "sub" / "x.safetensors").write_text("")
    assert findings(folder) == [
        f"{name}: not in the manifest and provenance statement" for name in ("more.txt", "sub/x.safetensors")
    ]


def test_what_downloads_leave_is_no_file_of_the_publication(converted: Converted, folder: Path) -> None:
    left = [".gitattributes", ".cache/huggingface/download/model0-mp8.safetensors.lock"]
    for name in [*left, ".gitattributes2", ".cache/other"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    found = {line.partition(":")[0] for line in findings(folder)}
    assert found == {".gitattributes2", ".cache/other"}
    # Nobody downloads into a folder that was converted: there it is a file that does not belong.
    for path in converted.release.iterdir():
        target = folder.parent / "release" / path.relative_to(converted.release)
        target.parent.mkdir(exist_ok=True)
        if path.is_file():
            target.write_bytes(path.read_bytes())
    (folder.parent / "release" / ".gitattributes").write_text("")
    assert ".gitattributes: not in the manifest" in findings(folder.parent / "release")


def test_a_snapshot_in_a_hub_cache_is_sound(converted: Converted, folder: Path, tmp_path: Path) -> None:
    """`hf download` without a folder leaves links into blobs/; before, each was called tampering."""
    repo = tmp_path / "models--FlagRelease--tiny"
    snapshot = repo / "snapshots" / ("a" * 40)
    (repo / "blobs").mkdir(parents=True)
    for path in (path for path in sorted(folder.rglob("*")) if path.is_file()):
        blob = repo / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert verify_release(snapshot, converted.source).passed
    blob = (snapshot / "model0-mp8.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    assert any(line.startswith("model0-mp8.safetensors: has SHA-256") for line in findings(snapshot))
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(folder / "config.json")  # the same bytes, from outside the cache
    assert "config.json: not a regular file: a release holds no links, pipes or devices" in findings(snapshot)


def test_a_git_clone_is_sound(folder: Path) -> None:
    """Before, every file of .git/ was called one that does not belong."""
    for name in (".git/config", ".git/hooks/post-update.sample", ".git/lfs/objects/x", ".gitattributes"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
        (folder / name).chmod(0o755)
    assert findings(folder) == []
    (folder / "sub").mkdir()
    (folder / "sub" / ".git").write_text("x")
    assert findings(folder) == ["sub/.git: not in the manifest and provenance statement"]


def test_a_mount_without_modes_is_sound(folder: Path) -> None:
    """Every file looks executable there; before, each was called tampering. One that alone is executable still is."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    (folder / "config.json").chmod(0o755)
    assert findings(folder) == ["config.json: executable (mode 755): a release is data"]
    for path in files:
        path.chmod(0o777)
    assert findings(folder) == []


def test_without_its_statement_nothing_explains_the_rest(folder: Path) -> None:
    (folder / STATEMENT).unlink()
    found = findings(folder)
    assert "run_mp8.sh: not in the manifest" in found
    assert any(line.startswith("README.md: has ") for line in found)


def relist(name: str, digest: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["subject"].append({"name": name, "digest": {"sha256": digest}})


def change_digest(document: dict[str, Any]) -> None:
    (subject,) = [item for item in document["subject"] if item["name"] == "model0-mp8.safetensors"]
    subject["digest"]["sha256"] = "0" * 64


def drop_config(document: dict[str, Any]) -> None:
    document["subject"] = [item for item in document["subject"] if item["name"] != "config.json"]


def change_chip(document: dict[str, Any]) -> None:
    document["predicate"]["buildDefinition"]["externalParameters"]["chip"] = "abacus"


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (change_digest, "model0-mp8.safetensors has another digest in the manifest"),
        (change_chip, "chip 'abacus' is not in the release's recipe"),
        (drop_config, "config.json is in the manifest, but not in the statement"),
        (relist("x.safetensors", "0" * 64), "x.safetensors is added"),
        (relist("zz/x.py", "0" * 64), "zz/x.py is added"),
        (relist("zz", "0" * 63), "is not a SHA-256"),
        (relist("z\nz", "0" * 64), "not printable"),
        (relist("zz", 7), "is not a SHA-256"),  # type: ignore[arg-type]
        (lambda document: document.pop("subject"), "not a statement of a publication"),
        (lambda document: document.update(more=1), "not what manifest, chip and digests give"),
        (lambda document: document["subject"].append(document["subject"][0]), "not what manifest, chip"),
        (lambda document: document["predicate"]["runDetails"]["builder"].update(id="x"), "not what manifest, chip"),
    ],
)
def test_a_statement_that_says_something_else_is_found(
    folder: Path, plant: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = folder / STATEMENT
    document = json.loads(path.read_bytes())
    plant(document)
    path.write_bytes(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    assert any(line.startswith(STATEMENT) and message in line for line in findings(folder))


def test_an_executable_or_a_link_among_the_added_is_found(folder: Path) -> None:
    (folder / "run_mp8.sh").chmod(0o755)
    (folder / "compose.yaml").rename(folder.parent / "compose.yaml")
    (folder / "compose.yaml").symlink_to(folder.parent / "compose.yaml")
    found = "; ".join(findings(folder))
    assert "run_mp8.sh: executable" in found
    assert "compose.yaml: not a regular file" in found
