"""`--hand-over CMD --hand-over-check CMD`: the command line with cp and sha256sum, and with programs that lie."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from harness import contents

from flagrelease.cli import main
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.records.manifest import MANIFEST_NAME

TARGETS = ["--target", "native:hf", "--target", "bf16:hf"]
FOLDERS = ("native-hf", "bf16-hf")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "checkpoint"
    write_checkpoint(folder, tiny_config(num_hidden_layers=1, num_nextn_predict_layers=0, compress_ratios=[4]))
    return folder


@pytest.fixture(scope="module")
def at_once(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("at-once")
    assert main(["convert", str(source), *TARGETS, "--out", str(out)]) == 0
    return contents(out)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for folder in FOLDERS:
        (tmp_path / "store" / folder / "inference").mkdir(parents=True)
    return tmp_path / "store"


def words(
    source: Path, store: Path, hand_over: str = "cp {file} {store}/{release}/{name}", **changes: str
) -> list[str]:
    check = changes.get("check", "sha256sum {store}/{release}/{name}").replace("{store}", str(store))
    return [
        "convert", str(source), *TARGETS, "--out", str(store.parent / "out"), "--disk", changes.get("disk", "1GB"),
        "--hand-over", hand_over.replace("{store}", str(store)), "--hand-over-check", check,
    ]  # fmt: skip


def test_files_are_copied_and_asked_for(
    source: Path, store: Path, at_once: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words(source, store), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert contents(store) == at_once
    assert not list((store.parent / "out").rglob("*.safetensors"))
    assert said["releases"]["native-hf"]["place"] == f"cp {{file}} {store}/native-hf/{{name}}"
    assert main(["status", str(store.parent / "out")]) == 0
    assert "handed over to cp {file}" in " ".join(capsys.readouterr().out.split())
    # A manifest that lies there already is not written around: the same command finds all of it whole.
    assert main(words(source, store)) == 0
    assert "Every file is whole in its place" in capsys.readouterr().out
    assert contents(store) == at_once


def test_a_manifest_that_is_there_before_the_files_is_refused(
    source: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "native-hf" / MANIFEST_NAME).write_text("{}")
    assert main(words(source, store)) == 5
    assert "what lies there looks whole while files are sent" in capsys.readouterr().err
    assert list((store / "native-hf").glob("*.safetensors")) == []


@pytest.mark.parametrize(
    ("hand_over", "said", "code"),
    [
        ("true {file} {release} {name}", "does not hold what it was sent: model-00001", 5),
        ("false {file} {release} {name}", "ended with exit code 1. Run the same command again to resume", 6),
        ("cp {file} {store}/{release}/missing/{name}", "ended with exit code 1: cp: cannot create", 6),
        ("head -c 1000 {file} {release} {name}", "ended with exit code 1", 6),
    ],
)
def test_what_was_not_handed_over_stays_here(
    hand_over: str, said: str, code: int, source: Path, store: Path, at_once: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(words(source, store, hand_over)) == code
    assert said in capsys.readouterr().err
    assert list((store.parent / "out").rglob("*.safetensors"))
    assert not list(store.rglob(MANIFEST_NAME))


def test_half_a_file_is_sent_again(source: Path, store: Path, at_once: dict[str, bytes]) -> None:
    """The program copies half of the second file, once, and says that all is well."""
    program = store.parent / "copy.py"
    program.write_text(
        "import pathlib, sys\n"
        "source, target = map(pathlib.Path, sys.argv[1:])\n"
        "data, mark = source.read_bytes(), pathlib.Path(__file__).with_suffix('.done')\n"
        "half = len(list(target.parent.parent.rglob('*.safetensors'))) == 1 and not mark.exists()\n"
        "if half: mark.touch()\n"
        "target.write_bytes(data[: len(data) // 2] if half else data)\n"
    )
    copy = f"{shlex.quote(sys.executable)} {program} {{file}} {{store}}/{{release}}/{{name}}"
    assert main(words(source, store, copy)) == 5
    assert not list(store.rglob(MANIFEST_NAME))
    assert main(words(source, store, copy)) == 0
    assert contents(store) == at_once


REFUSED = {
    "no place": (["--disk", "1GB"], "say where finished files go, --to hf|modelscope, or --hand-over"),
    "no budget": (["--to", "hf"], "need --disk SIZE"),
    "no check": (["--disk", "1GB", "--hand-over", "cp {file} {name}"], "give both"),
    "two places": (
        ["--disk", "1GB", "--to", "hf", "--hand-over", "cp {file} {name}", "--hand-over-check", "x {name}"],
        "--to and --hand-over: give one of them",
    ),
    "repo alone": (
        ["--disk", "1GB", "--repo", "a/b", "--hand-over", "cp {file} {name}", "--hand-over-check", "x {name}"],
        "--repo and --private belong to --to",
    ),
    "no name": (
        ["--disk", "1GB", "--hand-over", "cp {file} x", "--hand-over-check", "sha256sum {name}"],
        "has no {name}, so it would mean the same for several files",
    ),
    "no release": (
        ["--disk", "1GB", "--hand-over", "cp {file} x/{name}", "--hand-over-check", "sha256sum {name}"],
        "has no {release}",
    ),
    "no program": (
        ["--disk", "1GB", "--hand-over", "no-such {file} {release}/{name}", "--hand-over-check", "sha256sum {name}"],
        "no such program on this machine",
    ),
    "an open quote": (
        ["--disk", "1GB", "--hand-over", "cp '{file}", "--hand-over-check", "sha256sum {name}"],
        "No closing quotation",
    ),
    "no repository": (["--disk", "1GB", "--to", "hf"], "no recipe says the repository of native-hf, bf16-hf"),
    "another hub": (["--disk", "1GB", "--to", "ftp", "--repo", "a/b"], "no such hub"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_written(
    name: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, said = REFUSED[name]
    assert main(["convert", str(source), *TARGETS, "--out", str(tmp_path / "out"), *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
