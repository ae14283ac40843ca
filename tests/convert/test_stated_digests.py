"""Files that differ from the digest somebody states for them were converted; each authority is compared now."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import contents, plan_of

from flagrelease.cli import main
from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.running.conversion import convert
from flagrelease.errors import CheckpointError, ResourceError
from flagrelease.records.manifest import Manifest, read_manifest
from flagrelease.shard.folder import FolderFiles
from flagrelease.shard.index import open_checkpoint
from flagrelease.source.digests import Claim, Claims, join_claims, local_claims, read_digest_file


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git_sha1(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def published(path: Path) -> str:
    """What a hub uses as the ETag: SHA-256 of LFS files, git's id of the others."""
    return sha256(path) if path.suffix == ".safetensors" else git_sha1(path)


def flip_a_byte(path: Path) -> None:
    """Near the end, where no header is."""
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1000, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def hub_cache(checkpoint: Path, out: Path) -> Path:
    """As `hf download` leaves a repository (shared/cases/conv/hub_cache_layout.sh, with git's ids for small files)."""
    snapshot = out / "snapshots" / "r"
    for path in [path for path in checkpoint.rglob("*") if path.is_file()]:
        blob = out / "blobs" / published(path)
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        link = snapshot / path.relative_to(checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def local_download(checkpoint: Path, out: Path) -> Path:
    """As `hf download --local-dir` leaves it."""
    shutil.copytree(checkpoint, out)
    for path in [path for path in out.rglob("*") if path.is_file()]:
        name = path.relative_to(out)
        metadata = out / ".cache" / "huggingface" / "download" / f"{name.as_posix()}.metadata"
        metadata.parent.mkdir(parents=True, exist_ok=True)
        metadata.write_text(f"{'a' * 40}\n{published(path)}\n1764480000.0\n")
    return out


def run(source: Path, out: Path, claims: Claims | None = None) -> Manifest:
    plan = plan_of(source, "native:hf")
    convert(plan, out, workers=2, lookup=cpu_lookup, progress=lambda done: None, claims=claims)
    return read_manifest(out / "native-hf")


DOWNLOADS = pytest.mark.parametrize("download", [hub_cache, local_download])


@DOWNLOADS
def test_a_sound_download_is_checked_and_the_manifest_says_so(
    checkpoint: Path, tmp_path: Path, download: Callable[[Path, Path], Path]
) -> None:
    source = download(checkpoint, tmp_path / "download")
    manifest = run(source, tmp_path / "out")
    names = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert {record.path for record in manifest.source.checked} == names
    for record in manifest.source.checked:
        assert record.digest == published(checkpoint / record.path)
    count = len(list(checkpoint.glob("*.safetensors")))
    assert manifest.source.checked_against.startswith(f"{count} of {count} tensor files checked against the ")


@DOWNLOADS
@pytest.mark.parametrize("damaged", ["model", "config.json"])
def test_a_damaged_file_is_named_and_no_release_appears(
    checkpoint: Path, tmp_path: Path, download: Callable[[Path, Path], Path], damaged: str
) -> None:
    source = download(checkpoint, tmp_path / "download")
    path = source / "config.json" if damaged == "config.json" else sorted(source.glob("*.safetensors"))[2]
    if damaged == "config.json":
        path.resolve().write_bytes(path.read_bytes() + b"\n")
    else:
        flip_a_byte(path.resolve())
    with pytest.raises(CheckpointError, match=f"{re.escape(path.name)}: its .* says .*: damaged or exchanged"):
        run(source, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("manifest.json"))


def test_a_plain_folder_is_not_checked_and_the_manifest_says_so(checkpoint: Path, tmp_path: Path) -> None:
    manifest = run(checkpoint, tmp_path / "out")
    assert manifest.source.checked == ()
    assert manifest.source.checked_against == "not checked against any published digest"


def test_checking_changes_no_byte_but_the_record(checkpoint: Path, tmp_path: Path) -> None:
    run(checkpoint, tmp_path / "plain")
    run(hub_cache(checkpoint, tmp_path / "cache"), tmp_path / "checked")
    plain, checked = contents(tmp_path / "plain"), contents(tmp_path / "checked")
    assert {name for name in plain if plain[name] != checked[name]} == {"native-hf/manifest.json"}
    assert plain.keys() == checked.keys()


def test_a_digest_file_is_compared(checkpoint: Path, tmp_path: Path) -> None:
    source = shutil.copytree(checkpoint, tmp_path / "source")
    files = sorted(source.glob("*.safetensors"))
    lines = "".join(f"{sha256(path)} {mark}{path.name}\n" for path, mark in zip(files, " *" * 9, strict=False))
    (tmp_path / "SHA256SUMS").write_text(f"# a comment\n\n{lines}")
    claims = read_digest_file(tmp_path / "SHA256SUMS", FolderFiles(source))
    assert len(claims) == len(files)
    assert "a file of digests that the user gave" in run(source, tmp_path / "out", claims).source.checked_against
    flip_a_byte(files[0])
    words = ["convert", str(source), "--target", "native:hf", "--source-digests", str(tmp_path / "SHA256SUMS")]
    assert main([*words, "--out", str(tmp_path / "other")]) == 3
    assert not list((tmp_path / "other").rglob("manifest.json"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("abc  config.json\n", "line 1: not a line of sha256sum"),
        (f"{'0' * 64}  absent.safetensors\n", "line 1: absent.safetensors is not in"),
        (f"{'0' * 64}  config.json\n{'0' * 64}  config.json\n", "line 2: config.json is named twice"),
        ("\n", "names no file"),
    ],
)
def test_a_digest_file_that_says_nothing_sound_is_refused_by_plan(
    checkpoint: Path, tmp_path: Path, text: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sums").write_text(text)
    words = ["plan", str(checkpoint), "--target", "native:hf", "--source-digests", str(tmp_path / "sums")]
    assert main(words) == 2
    assert why in capsys.readouterr().err


def test_claims_that_contradict_each_other_are_refused_before_a_file_is_read(checkpoint: Path, tmp_path: Path) -> None:
    source = hub_cache(checkpoint, tmp_path / "cache")
    (tmp_path / "sums").write_text(f"{'0' * 64}  {min(source.glob('*.safetensors')).name}\n")
    stated = read_digest_file(tmp_path / "sums", FolderFiles(source))
    with pytest.raises(CheckpointError, match=r"hub-cache says its sha256 is .* digest-file says"):
        join_claims(FolderFiles(source), [local_claims(source), stated])


def test_a_finished_release_of_files_with_other_digests_is_not_called_done(checkpoint: Path, tmp_path: Path) -> None:
    """Another checkpoint that differs where the cheap identity does not look, but whose hub cache names it."""
    run(hub_cache(checkpoint, tmp_path / "one"), tmp_path / "out")
    other = shutil.copytree(checkpoint, tmp_path / "plain")
    embed = open_checkpoint(other).tensors["embed.weight"]
    with Path(embed.file).open("r+b") as file:
        file.seek(embed.begin + embed.nbytes // 2)
        file.write(b"\x01\x02")
    with pytest.raises(ResourceError, match=r"finished release of another checkpoint: model.* hub-cache now says"):
        run(hub_cache(other, tmp_path / "two"), tmp_path / "out")
    run(hub_cache(checkpoint, tmp_path / "again"), tmp_path / "out")


def test_a_finished_release_that_was_not_checked_is_hashed_when_digests_are_given_later(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The digests were read and compared with nothing: a damaged source exited 0."""
    source, out, sums = shutil.copytree(checkpoint, tmp_path / "source"), tmp_path / "out", tmp_path / "SHA256SUMS"
    files = sorted(source.glob("*.safetensors"))
    run(source, out)
    before = contents(out)
    sums.write_text("".join(f"{sha256(path)}  {path.name}\n" for path in files))
    words = ["convert", str(source), "--target", "native:hf", "--out", str(out)]
    assert main(words) == 0
    assert "digests" not in capsys.readouterr().err
    assert main([*words, "--source-digests", str(sums)]) == 0
    said = capsys.readouterr().err
    assert f"native-hf: finished before these digests were given. {len(files)} files of the source agree" in said
    assert "the manifest is left as it is, because reports and signatures name it" in said
    embed = open_checkpoint(source).tensors["embed.weight"]  # the cheap identity does not see its middle
    with Path(embed.file).open("r+b") as file:
        file.seek(embed.begin + embed.nbytes // 2)
        file.write(b"\x01\x02")
    assert main([*words, "--source-digests", str(sums)]) == 3
    said = capsys.readouterr().err
    assert f"{Path(embed.file).name}: its sha256 is" in said
    assert "The finished native-hf may have been made of it" in said
    assert contents(out) == before


def test_a_release_that_records_its_digests_is_not_hashed_again(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = tmp_path / "SHA256SUMS"
    sums.write_text("".join(f"{sha256(path)}  {path.name}\n" for path in sorted(checkpoint.glob("*.safetensors"))))
    words = ["convert", str(checkpoint), "--target", "native:hf", "--out", str(tmp_path / "out")]
    for _ in range(2):
        assert main([*words, "--source-digests", str(sums)]) == 0
    assert "finished before" not in capsys.readouterr().err


def test_what_was_hashed_before_an_interruption_is_not_hashed_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a hub it would be fetched again. What is stated now decides: another digest is compared with the bytes."""
    names = sorted(path.name for path in checkpoint.glob("*.safetensors"))
    claims: Claims = {name: (Claim("sha256", sha256(checkpoint / name), "digest-file"),) for name in names}
    whole = run(checkpoint, tmp_path / "undisturbed", claims)
    hashed: list[str] = []
    stream = FolderFiles.stream
    monkeypatch.setattr(FolderFiles, "stream", lambda self, name: hashed.append(name) or stream(self, name))

    def no_more(*_: object) -> None:
        raise ResourceError("planted")

    with monkeypatch.context() as patch:
        patch.setattr("flagrelease.convert.running.conversion.assemble", no_more)
        with pytest.raises(ResourceError, match="planted"):
            run(checkpoint, tmp_path / "out", claims)
    assert sorted(hashed) == names
    other = claims | {names[1]: (Claim("sha256", "0" * 64, "digest-file"),)}
    hashed.clear()
    with pytest.raises(CheckpointError, match=f"{names[1]}: its sha256 is .* but digest-file says 0000"):
        run(checkpoint, tmp_path / "out", other)
    assert hashed == [names[1]]
    hashed.clear()
    assert run(checkpoint, tmp_path / "out", claims) == whole
    assert hashed == []
