"""The publication and the folder target, against plain hashing of what lies on the disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from publish_release import write_release

from flagrelease.chips.table import get_chip
from flagrelease.console import progress
from flagrelease.errors import ResourceError, UsageError, VerificationError
from flagrelease.publish.folder import list_folder, publish_folder
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.hubs.modelscope import MODELSCOPE
from flagrelease.publish.hubs.registry import HUBS
from flagrelease.publish.limits import commits, limit_advice, limit_problems
from flagrelease.publish.listing import compare, git_sha1
from flagrelease.publish.publication import Publication, make_publication
from flagrelease.publish.reading.remote import RemoteFile
from flagrelease.publish.records import read_records
from flagrelease.records.manifest import FileRecord, Manifest

CARD = b"---\nlicense: mit\n---\n# the card\n"


def publication_of(release: Path, report: Path | None = None, **documents: bytes) -> Publication:
    records = read_records(release, get_chip("nvidia"), report, allow_unvalidated=report is None)
    return make_publication(records, None, "FlagRelease/x", False, {"README.md": CARD, **documents})


def put(publication: Publication, folder: Path) -> None:
    with progress("publish", publication.bytes) as tracker:
        publish_folder(publication, folder, tracker)


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_folder_holds_the_release_the_card_the_report_and_nothing_else(
    release: Path, report: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mirror" / "out"
    put(publication_of(release, report), folder)
    expected = hashes(release) | {
        "README.md": hashlib.sha256(CARD).hexdigest(),
        "report.json": hashlib.sha256(report.read_bytes()).hexdigest(),
    }
    assert hashes(folder) == expected
    assert os.listdir(folder.parent) == ["out"]
    assert (folder / "model0-mp8.safetensors").samefile(release / "model0-mp8.safetensors")
    assert not (folder / "README.md").samefile(release / "README.md")


def test_another_file_system_gets_copies(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    put(publication_of(release), tmp_path / "out")
    assert not (tmp_path / "out" / "LICENSE").samefile(release / "LICENSE")
    assert hashes(tmp_path / "out") == hashes(release) | {"README.md": hashlib.sha256(CARD).hexdigest()}


def test_space_is_checked_before_anything_is_copied(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the copy ran until the disk was full and ended in a traceback that named the source."""
    publication, room = publication_of(release), 1 << 20

    def refuse(*_: object) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": room}))
    put(publication, tmp_path / "linked")  # links take no space
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    said = rf"out: the publication takes {publication.bytes:,} bytes there, 1,048,576 are free"
    with pytest.raises(ResourceError, match=said):
        put(publication, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["fp8-mp8", "linked"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_target_that_cannot_be_written_is_named(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(ResourceError, match=rf"out: cannot be written \({error.strerror}\)"):
        put(publication_of(release), tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["fp8-mp8"]


def test_a_target_that_is_a_file_is_named(release: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ResourceError, match="exists and is no folder"):
        put(publication_of(release), tmp_path / "out")


def test_again_is_nothing_and_something_else_is_refused(release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    put(publication_of(release), folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    put(publication_of(release), folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    (folder / "more.txt").write_text("more")
    with pytest.raises(ResourceError, match=r"not of this release: more\.txt"):
        put(publication_of(release), folder)


def test_what_a_publication_replaced_is_gone_also_after_a_kill(release: Path, tmp_path: Path) -> None:
    """The same command again finds the new one whole: nobody else would remove what the killed run had set aside."""
    folder, former = tmp_path / "out", tmp_path / ".out.replaced"
    put(publication_of(release), folder)
    former.mkdir()
    (former / "README.md").write_text("of before")
    with progress("publish", 1) as tracker:
        publish_folder(publication_of(release), folder, tracker, replace=True)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_changed_byte_is_found_and_leaves_nothing(release: Path, tmp_path: Path) -> None:
    publication = publication_of(release)
    path = release / "model1-mp8.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationError, match=r"changed: model1-mp8\.safetensors"):
        put(publication, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["fp8-mp8"]


def test_what_a_killed_run_left_is_not_believed(release: Path, tmp_path: Path) -> None:
    publication = publication_of(release)
    left = tmp_path / f".out.{publication.digest[:12]}.unfinished"
    left.mkdir()
    (left / "model0-mp8.safetensors").write_bytes(b"half")
    put(publication, tmp_path / "out")
    assert not left.exists()
    assert hashes(tmp_path / "out")["model0-mp8.safetensors"] == hashes(release)["model0-mp8.safetensors"]


def test_a_link_in_a_mirror_is_a_difference(release: Path, tmp_path: Path) -> None:
    put(publication_of(release), tmp_path / "out")
    (tmp_path / "out" / "LICENSE").unlink()
    (tmp_path / "out" / "LICENSE").symlink_to(release / "LICENSE")
    with progress("list", 0) as tracker:
        difference = compare(publication_of(release).by_path, list_folder(tmp_path / "out", tracker))
    assert difference.changed == ("LICENSE",)


def test_planning_reads_no_tensor_file(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = hashes(release)["model0-mp8.safetensors"]
    for path in release.glob("*.safetensors"):
        path.chmod(0)
    opened: list[str] = []
    original = Path.open

    def watch(self: Path, *arguments: object, **options: object) -> object:
        opened.append(self.name)
        return original(self, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", watch)
    publication = publication_of(release)
    assert publication.by_path["model0-mp8.safetensors"].sha256 == expected
    assert not [name for name in opened if name.endswith(".safetensors")]


def test_the_version_follows_every_byte(release: Path, tmp_path: Path) -> None:
    first = publication_of(release)
    held = hashes(release) | {"README.md": hashlib.sha256(CARD).hexdigest()}
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(held.items()))
    assert first.version == "v0.1.0-" + hashlib.sha256(lines.encode()).hexdigest()[:12]
    records = read_records(release, get_chip("nvidia"), None, True)
    other = make_publication(records, None, "FlagRelease/x", False, {"README.md": CARD + b"."})
    assert other.version != first.version


def test_a_document_does_not_hide_a_file(release: Path) -> None:
    with pytest.raises(UsageError, match="LICENSE"):
        publication_of(release, LICENSE=b"other")


def test_limits_of_the_hubs(release: Path) -> None:
    records = read_records(release, get_chip("nvidia"), None, True)
    large = FileRecord(path="model9-mp8.safetensors", size=410_700_000_000, sha256="0" * 64)  # Pro BF16 mp8
    manifest: Manifest = records.manifest.model_copy(update={"files": (*records.manifest.files, large)})
    records = type(records)(
        records.release, manifest, records.manifest_bytes, records.recipe, records.chip, records.licence, None, None
    )
    on = {hub.name: make_publication(records, hub, "FlagRelease/x", False, {}) for hub in HUBS}
    assert limit_problems(on["huggingface"]) == []
    assert "advises" in limit_advice(on["huggingface"])[0]
    (problem,) = limit_problems(on["modelscope"])
    assert "410,700,000,000" in problem
    assert "100,000,000,000" in problem
    assert limit_problems(make_publication(records, None, "x", False, {})) == []


def test_modelscope_takes_half_a_gigabyte_outside_lfs_and_256_files_a_commit(release: Path) -> None:
    records = read_records(release, get_chip("nvidia"), None, True)
    on = make_publication(records, MODELSCOPE, "FlagRelease/x", False, {})
    assert commits(on) == 1
    small = [FileRecord(path=f"notes/{n}.txt", size=60_000, sha256="0" * 64) for n in range(9000)]
    manifest = records.manifest.model_copy(update={"files": (*records.manifest.files, *small)})
    records = type(records)(
        records.release, manifest, records.manifest_bytes, records.recipe, records.chip, records.licence, None, None
    )
    on = make_publication(records, MODELSCOPE, "FlagRelease/x", False, {})
    (problem,) = limit_problems(on)
    assert "takes 500,000,000 outside LFS" in problem
    # base64 makes 80,000 bytes of 60,000, and 8 MiB hold 104 of them
    assert commits(on) == -(-9000 // 104)
    assert not limit_problems(make_publication(records, HUGGING_FACE, "FlagRelease/x", False, {}))


def test_comparison_sees_missing_changed_and_extra(release: Path) -> None:
    publication = publication_of(release)
    right = [RemoteFile(file.path, file.size, file.sha256) for file in publication.files]
    hub_file = RemoteFile(".gitattributes", 3, None, "0" * 40)
    assert not compare(publication.by_path, [*right, hub_file])
    assert compare(publication.by_path, right[1:]).missing == (right[0].path,)
    assert compare(publication.by_path, [*right, RemoteFile("x", 0, "0" * 64)]).extra == ("x",)
    for wrong in (
        RemoteFile(right[0].path, right[0].size, "0" * 64),
        RemoteFile(right[0].path, right[0].size + 1, right[0].sha256),
        RemoteFile(right[0].path, right[0].size, None, "0" * 40),
    ):
        assert compare(publication.by_path, [wrong, *right[1:]]).changed == (right[0].path,)
    with pytest.raises(VerificationError, match="no digest"):
        compare(publication.by_path, [RemoteFile(right[0].path, right[0].size, None)])


def test_git_ids_are_those_of_git() -> None:
    # `printf 'test content\n' | git hash-object --stdin` in the Pro Git book
    assert git_sha1(b"test content\n") == "d670460b4b4aece5915caf5c68d12f560a9fe3e4"
    assert git_sha1(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_two_releases_do_not_mix(tmp_path: Path) -> None:
    first, second = write_release(tmp_path / "a"), write_release(tmp_path / "b", chip="mthreads")
    put(publication_of(first), tmp_path / "out")
    records = read_records(second, get_chip("mthreads"), None, True)
    with pytest.raises(ResourceError, match="something else"):
        put(make_publication(records, None, "FlagRelease/y", False, {"README.md": CARD}), tmp_path / "out")
