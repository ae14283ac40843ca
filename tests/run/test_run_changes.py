"""A changed recipe, checkpoint or folder: `run` does again what it must, nothing else, and says why."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from night_runs import THREE, run, write_recipe

Capture = pytest.CaptureFixture[str]


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_chip_that_gets_another_format_is_the_only_one_that_is_converted(night: Path, capsys: Capture) -> None:
    """The recipe is in every manifest: by the plan's digest alone every release would be another one."""
    before = digests(night / "out" / "fp8-hf")
    recipe = write_recipe(night, THREE | {"ascend": {"format": "bf16", "layout": "mp2"}})
    ran = run(capsys, recipe, night / "out")
    assert (ran.code, set(ran.why)) == (0, {"ascend convert", "ascend verify", "ascend validate"})
    assert ran.why["ascend convert"] == "there is no release yet"
    assert digests(night / "out" / "fp8-hf") == before
    assert ran.document["summary"] == "3 releases of 3 chips are validated; there was something to do for 1 of them"
    again = run(capsys, recipe, night / "out")
    assert (again.why, again.document["verdict"]) == ({}, "nothing-to-do")
    assert again.document["summary"] == "nothing to do: 3 releases of 3 chips are validated"


def test_another_rule_of_conversion_replaces_a_release_only_when_told(night: Path, capsys: Capture) -> None:
    """Hours of work and terabytes are not removed because somebody named the wrong recipe."""
    before = digests(night / "out" / "bf16-hf")
    recipe = write_recipe(night, convert={"max_file_bytes": "4 MB"})
    refused = run(capsys, recipe, night / "out", "--chip", "ascend")
    assert (refused.code, refused.status) == (4, {"ascend convert": "failed"})
    assert "convert.max_file_bytes: 5000000000 -> 4000000" in refused.detail("ascend", "convert")
    assert "--replace" in refused.detail("ascend", "convert")
    assert digests(night / "out" / "bf16-hf") == before

    ran = run(capsys, recipe, night / "out", "--chip", "ascend", "--replace")
    assert ran.code == 0
    assert "max_file_bytes" in ran.why["ascend convert"]
    assert ran.why["ascend verify"]
    assert "another manifest" in ran.why["ascend validate"]
    (chip,) = ran.night.chips
    report, manifest = sorted(chip.history)
    assert (manifest.split("/")[:2], report.split("/")[:2]) == (["history", "bf16-hf"], ["history", "bf16-hf-ascend"])
    assert (
        hashlib.sha256((night / "out" / manifest / "manifest.json").read_bytes()).hexdigest() == before["manifest.json"]
    )
    config = (night / "out" / manifest / "config.json").read_bytes()
    assert hashlib.sha256(config).hexdigest() == before["config.json"], "flagrelease diff compares it by key"
    assert (night / "out" / report / "report.html").is_file()
    assert not [path.name for path in (night / "out").iterdir() if path.name.startswith(".")]
    assert run(capsys, recipe, night / "out", "--chip", "ascend", "--replace").why == {}


def test_a_chip_that_joins_a_release_writes_its_manifest_again_and_no_other_file(night: Path, capsys: Capture) -> None:
    """A card is made of the manifest's recipe, which must say that the chip gets the release."""
    tensors = {path: path.stat().st_mtime_ns for path in (night / "out" / "fp8-hf").iterdir()}
    recipe = write_recipe(night, THREE | {"metax": {"format": "fp8", "layout": "hf"}})
    ran = run(capsys, recipe, night / "out")
    assert ran.code == 0
    assert "releases.metax: nothing -> " in ran.why["nvidia convert"]
    assert "its files stay" in ran.why["metax convert"]
    assert not any(key.startswith("ascend") for key in ran.why)
    written = [path.name for path, time in tensors.items() if path.stat().st_mtime_ns != time]
    assert written == ["manifest.json"]
    fresh = run(capsys, recipe, night / "fresh", "--chip", "metax")
    assert fresh.code == 0
    assert digests(night / "fresh" / "fp8-hf") == digests(night / "out" / "fp8-hf")


def test_another_owner_publishes_again_and_nothing_else(night: Path, capsys: Capture) -> None:
    words = ("--chip", "ascend", "--publish", night / "mirror", "--yes")
    first = run(capsys, night / "recipe.yaml", night / "out", *words)
    assert first.why == {"ascend publish": "it was not published from here yet"}
    recipe = write_recipe(night, owner="example")
    assert run(capsys, recipe, night / "out", *words).document["chips"][0]["repository"].startswith("example/small-v4")
    own = {"ascend": THREE["ascend"] | {"repo": "example/mine"}}
    ran = run(capsys, write_recipe(night, THREE | own), night / "out", *words)
    assert set(ran.why) == {"ascend publish"}
    assert (night / "mirror" / "mine" / "manifest.json").is_file()
    assert "example/mine" in (night / "mirror" / "mine" / "README.md").read_text(encoding="utf-8")
    assert run(capsys, write_recipe(night, THREE | own), night / "out", *words).why == {}


def test_a_published_folder_is_replaced_when_told_and_only_by_the_same_model(night: Path, capsys: Capture) -> None:
    """A changed report is a changed publication."""
    mirror = night / "mirror"
    words = ("--chip", "ascend", "--publish", mirror, "--yes")
    assert run(capsys, night / "recipe.yaml", night / "out", *words).code == 0
    rules = write_recipe(night, validation={"stages": ["integrity"]})
    refused = run(capsys, rules, night / "out", *words)
    assert (refused.code, refused.status["ascend publish"]) == (4, "failed")
    assert set(refused.why) == {"ascend validate"}
    assert "the rules changed (stages: " in refused.why["ascend validate"]
    ran = run(capsys, rules, night / "out", *words, "--replace")
    assert ran.code == 0
    assert "report.json" in ran.why["ascend publish"]
    (folder,) = mirror.iterdir()
    assert json.loads((folder / "report.json").read_bytes())["rules"]["stages"] == ["integrity"]
    (folder / "README.md").unlink()
    damaged = run(capsys, rules, night / "out", *words, "--replace")
    assert damaged.why == {"ascend publish": "README.md was written there since"}
    (folder / "provenance.intoto.json").unlink()
    foreign = run(capsys, rules, night / "out", *words, "--replace")
    assert (foreign.code, foreign.status["ascend publish"]) == (4, "failed")
    assert "nothing that flagrelease published" in foreign.detail("ascend", "publish")


def test_a_release_that_was_wrong_is_proved_again_when_its_files_were_mended(night: Path, capsys: Capture) -> None:
    """Its verdict stood for ever, whatever was done to the files."""
    recipe, out = night / "recipe.yaml", night / "out"
    victim = sorted((out / "bf16-hf").glob("*.safetensors"))[0]
    sound = victim.read_bytes()
    victim.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    (out / "records" / "verify-bf16-hf.json").unlink()
    (out / "validation" / "bf16-hf-ascend" / "state" / "integrity.json").unlink()
    bad = run(capsys, recipe, out)
    assert (bad.code, bad.status["ascend verify"], bad.status["nvidia validate"]) == (5, "failed", "done")
    assert victim.name in bad.detail("ascend", "verify")
    report = json.loads((out / "validation" / "bf16-hf-ascend" / "report.json").read_bytes())
    assert report["verdict"] == "fail"
    assert bad.document["summary"].startswith("2 of 3 releases of 3 chips are validated; 1 failed: ascend bf16-hf (ver")
    again = run(capsys, recipe, out)
    assert (again.code, again.why) == (5, {})
    victim.write_bytes(sound)
    mended = run(capsys, recipe, out)
    assert mended.code == 0
    assert mended.why["ascend verify"] == f"it was wrong, and {victim.name} was written since"
    assert run(capsys, recipe, out).why == {}


def test_what_is_no_release_keeps_its_own_chip_and_no_other(night: Path, capsys: Capture) -> None:
    """A folder of somebody else's was a refusal of the whole run."""
    out = night / "elsewhere"
    (out / "bf16-hf").mkdir(parents=True)
    (out / "bf16-hf" / "notes.txt").write_text("mine")
    ran = run(capsys, night / "recipe.yaml", out, "--replace")
    assert (ran.code, ran.status["ascend convert"], ran.status["nvidia validate"]) == (4, "failed", "done")
    assert "notes.txt" in ran.detail("ascend", "convert")
    assert (out / "bf16-hf" / "notes.txt").read_text() == "mine"


def test_a_release_that_cannot_be_planned_keeps_its_own_chip_and_no_other(night: Path, capsys: Capture) -> None:
    releases = THREE | {"ascend": {"format": "bf16", "layout": "mp3"}}
    ran = run(capsys, write_recipe(night, releases), night / "out")
    assert (ran.code, ran.status["ascend convert"], ran.status["nvidia validate"]) == (2, "failed", "done")
    assert "3" in ran.detail("ascend", "convert")
    assert {key.partition(" ")[0] for key in ran.why} == set()


def test_a_damaged_report_keeps_its_own_chip_and_no_other(night: Path, capsys: Capture) -> None:
    (night / "out" / "validation" / "bf16-hf-ascend" / "report.json").write_text("{")
    ran = run(capsys, night / "recipe.yaml", night / "out")
    assert (ran.code, ran.status["ascend verify"], ran.status["nvidia validate"]) == (5, "failed", "done")
    assert "report.json" in ran.detail("ascend", "verify")
    assert ran.night.chips[0].verdict is None


def test_a_damaged_report_keeps_no_chip_that_shares_the_release(night: Path, capsys: Capture) -> None:
    report = night / "out" / "validation" / "fp8-hf-nvidia" / "report.json"
    report.write_text("{")
    ran = run(capsys, night / "recipe.yaml", night / "out")
    assert (ran.code, ran.status["ascend validate"], ran.status["mthreads validate"]) == (5, "done", "done")
    assert "report.json: document: Invalid JSON" in ran.detail("nvidia", "verify")
    assert "move it away" in ran.detail("nvidia", "verify")
    assert [chip.verdict for chip in ran.night.chips] == ["pass", "pass", None]
