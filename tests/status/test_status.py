"""`flagrelease status`: a folder with everything in it, each thing also damaged, stale, absent or half done."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from publish_release import report_for, write_release, write_report

from flagrelease.cli import main
from flagrelease.convert.running import chunks, lanes
from flagrelease.durable.lock import FileLock
from flagrelease.publish.publish import publish
from flagrelease.records.manifest import ToolRecord
from flagrelease.records.night import Night, NightChip, NightStep
from flagrelease.shard import writer
from flagrelease.status.folder import ChipState, FolderStatus, look_at
from flagrelease.status.unfinished import is_locked, progress

TINY = Path(__file__).parents[2] / "examples" / "tiny" / "flagrelease-tiny-v4"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """V4-Flash as fp8-mp8, for nvidia and mthreads, validated for one of them."""
    folder = tmp_path / "out"
    release = write_release(folder / "fp8-mp8")
    report = folder / "validation" / "fp8-mp8-nvidia" / "report.json"
    report.parent.mkdir(parents=True)
    write_report(release, report)
    return folder


def write_night(out: Path, chip: str, digest: str | None) -> None:
    """Leave the record of a run that published fp8-mp8 for a chip."""
    step = NightStep(status="done", kept=False, why="first", detail="published", seconds=1.0)
    one = NightChip(
        chip=chip, release="fp8-mp8", stack="flagos", repository="FlagRelease/X", bytes=1, manifest_sha256=digest,
        verdict="pass", report_sha256=None, history=(), steps={"publish": step},
    )  # fmt: skip
    night = Night(
        began="2026-11-30T19:55:12Z", tool=ToolRecord(version="0.1.0"), commit=None, recipe="r", recipe_sha256="0" * 64,
        model="M", first="convert", last="publish", target="hf", chips=(one,),
    )  # fmt: skip
    (out / "nights").mkdir()
    (out / "nights" / "one.json").write_bytes(night.to_json())


def of(found: FolderStatus, chip: str, release: str = "fp8-mp8") -> ChipState:
    return next(one for one in found.chips if (one.chip, one.release) == (chip, release))


def test_done_proved_and_missing_by_chip(out: Path) -> None:
    found = look_at(out)
    assert [(one.name, one.conversion, one.model) for one in found.releases] == [
        ("fp8-mp8", "complete", "DeepSeek-V4-Flash")
    ]
    done = of(found, "nvidia")
    assert (done.conversion, done.validation, done.weights_proved, done.missing) == (
        "complete", "pass", True, ("publish",),
    )  # fmt: skip
    assert of(found, "mthreads").missing == ("validate", "publish")
    never = of(found, "ascend", "bf16-mp16")
    assert (never.conversion, never.missing) == ("missing", ("convert", "validate", "publish"))
    assert look_at(out / "fp8-mp8") == found, "a release stands for the folder it is in"


def test_publications_in_folders_and_by_the_record_of_a_run(out: Path) -> None:
    report = out / "validation" / "fp8-mp8-nvidia" / "report.json"
    publish(out / "fp8-mp8", "nvidia", str(out / "published" / "ours"), report=report, yes=True)
    found = look_at(out)
    assert of(found, "nvidia").published == ("published/ours",)
    assert of(found, "nvidia").missing == ()
    assert of(found, "mthreads").published == ()
    digest = found.releases[0].manifest_sha256
    write_night(out, "mthreads", digest)
    (where,) = of(look_at(out), "mthreads").published
    assert where == "hf FlagRelease/X, by the record of the run of 2026-11-30T19:55:12Z"


def test_a_report_of_another_manifest_proves_nothing(out: Path) -> None:
    report = out / "validation" / "fp8-mp8-nvidia" / "report.json"
    published = out / "published"
    publish(out / "fp8-mp8", "nvidia", str(published), report=report, yes=True)
    manifest = out / "fp8-mp8" / "manifest.json"
    document = json.loads(manifest.read_text())
    manifest.unlink()  # publications are hard links of the release's files
    manifest.write_text(json.dumps(document | {"plan": "6" * 64}))
    found = look_at(out)
    one = of(found, "nvidia")
    assert (one.validation, one.weights_proved, one.published) == ("of another manifest", False, ())
    assert any("fp8-mp8-nvidia is of another manifest than fp8-mp8 has now" in text for text in found.remarks)
    assert any("published is a publication of another manifest" in text for text in found.remarks)


@pytest.mark.parametrize(
    ("changes", "validation", "missing"),
    [
        ({"verdict": "fail"}, "fail", "validate"),
        ({"verdict": "cannot-tell"}, "cannot-tell", "validate"),
        ({"stages": [{"name": "integrity", "verdict": "pass", "detail": "d"},
                     {"name": "weights", "verdict": "pass", "detail": "d"}]}, "pass", "proof of the weights"),
        ({"verdict": "splendid"}, "unreadable", "validate"),
    ],
)  # fmt: skip
def test_what_is_no_pass(out: Path, changes: dict[str, Any], validation: str, missing: str) -> None:
    if validation in ("fail", "cannot-tell"):
        changes = changes | {"stages": [{"name": "integrity", "verdict": changes["verdict"], "detail": "d"}]}
    report = out / "validation" / "fp8-mp8-nvidia" / "report.json"
    write_report(out / "fp8-mp8", report, **changes)
    one = of(look_at(out), "nvidia")
    assert (one.validation, one.weights_proved) == (validation, False)
    assert one.missing[0].startswith(missing)


def test_a_validation_that_is_going_on_names_its_finished_stages(out: Path) -> None:
    folder = out / "validation" / "fp8-mp8-nvidia"
    (folder / "report.json").unlink()
    (folder / "state").mkdir()
    manifest = (out / "fp8-mp8" / "manifest.json").read_bytes()
    begun = {"version": 1, "command": "validate", "binding": {"release": hashlib.sha256(manifest).hexdigest()}}
    (folder / "state" / "begun.json").write_text(json.dumps(begun))
    stages = report_for(manifest, "nvidia")["stages"]
    for stage in stages:
        (folder / "state" / f"{stage['name']}.json").write_text(json.dumps({"stage": stage, "inputs": {}}))
    one = of(look_at(out), "nvidia")
    assert (one.validation, one.stages) == ("unfinished", {"integrity": "pass", "weights": "pass"})
    assert one.weights_proved, "as `run --until verify` leaves it"
    assert one.missing == ("validate", "publish")
    stages[1]["figures"] = {}
    (folder / "state" / "weights.json").write_text(json.dumps({"stage": stages[1]}))
    assert not of(look_at(out), "nvidia").weights_proved
    (folder / "state" / "weights.json").write_text("{")
    assert of(look_at(out), "nvidia").validation == "unreadable"
    begun["binding"] = {"release": "0" * 64}
    (folder / "state" / "begun.json").write_text(json.dumps(begun))
    assert of(look_at(out), "nvidia").validation == "of another manifest"


@pytest.mark.parametrize("damage", ["absent", "short", "manifest"])
def test_a_damaged_release_is_not_complete(out: Path, damage: str) -> None:
    path = out / "fp8-mp8" / ("manifest.json" if damage == "manifest" else "model1-mp8.safetensors")
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + (b"" if damage == "short" else b"x"))
    (state,) = look_at(out).releases
    assert state.conversion == "damaged"
    assert state.problem is not None
    assert path.name in state.problem


def test_how_far_an_unfinished_conversion_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(writer, "BLOCK_BYTES", 64 << 10)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 64 << 10)
    monkeypatch.setattr(lanes, "CHECKPOINT_BYTES", 256 << 10)

    def stopping(report: Any, complete: int) -> Any:
        def say(done: int) -> None:
            if done > 4_000_000:
                raise KeyboardInterrupt

        return say

    monkeypatch.setattr("flagrelease.console.saying_where_it_resumes", stopping)
    words = ["convert", str(TINY), "--target", "native:hf", "--out", str(tmp_path), "--workers", "1"]
    assert main(words) == 130
    (state,) = look_at(tmp_path).releases
    assert (state.name, state.conversion) == ("native-hf", "unfinished")
    assert state.progress is not None
    far = state.progress
    grown = sum(path.stat().st_size for path in (tmp_path / "native-hf" / ".flagrelease").glob("*.safetensors*"))
    assert 0 < far.written <= grown < (far.total or 0)
    assert far.working is False
    journal = tmp_path / "native-hf" / ".flagrelease" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"file":"torn","off')
    assert progress(tmp_path / "native-hf").written == far.written
    capsys.readouterr()
    assert main(["status", str(tmp_path)]) == 0
    assert "unfinished: " in capsys.readouterr().out
    monkeypatch.undo()
    assert main(words) == 0
    (state,) = look_at(tmp_path).releases
    assert state.conversion == "complete"
    assert far.total is not None
    manifest = json.loads((tmp_path / "native-hf" / "manifest.json").read_text())
    assert far.total == sum(file["size"] for file in manifest["files"])


def test_who_works_is_seen_without_taking_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    assert is_locked(path) is False
    with FileLock(path, tmp_path):
        assert is_locked(path) is True
    assert is_locked(path) is False
    assert is_locked(tmp_path / "none") is None


def test_without_a_recipe_a_release_is_for_no_chip(tmp_path: Path) -> None:
    assert main(["convert", str(TINY), "--target", "native:hf", "--out", str(tmp_path)]) == 0
    found = look_at(tmp_path)
    assert found.chips == ()
    assert found.remarks == ("native-hf: converted without a recipe, so it is for no chip in particular",)


@pytest.mark.parametrize("what", ["a folder", "in no folder", "of a chip that nobody knows", "recipe"])
def test_one_thing_that_cannot_be_read_does_not_hide_the_others(
    out: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    report, manifest = out / "validation" / "fp8-mp8-nvidia" / "report.json", out / "fp8-mp8" / "manifest.json"
    if what == "a folder":
        report.unlink()
        report.mkdir()
        assert of(look_at(out), "nvidia").validation == "unreadable"
    elif what == "in no folder":
        shutil.rmtree(out / "validation")
        (out / "validation").touch()
        assert of(look_at(out), "nvidia").validation == "missing"
    elif what == "recipe":
        document = json.loads(manifest.read_text()) | {"recipe": {"schema_version": 1, "of": "a later version"}}
        manifest.write_text(json.dumps(document))
        found = look_at(out)
        assert found.releases[0].conversion == "complete"
        assert "fp8-mp8: the recipe in its manifest cannot be read (" in found.remarks[0]
    else:
        write_night(out, "photonic", "0" * 64)
        assert of(look_at(out), "nvidia").validation == "pass"
    assert main(["status", str(out)]) == 0
    assert "fp8-mp8" in capsys.readouterr().out


def test_as_text_and_as_a_document(out: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (out / "baseline" / "benchmarks").mkdir(parents=True)
    (out / "baseline" / "benchmarks" / "gpqa.json").write_text("{}")
    (out / "validation" / "other-nvidia").mkdir()
    (out / "validation" / "other-nvidia" / "report.json").write_text("{}")
    assert main(["status", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["baseline"] == ["benchmarks/gpqa"]
    assert told["remarks"] == ["validation/other-nvidia/report.json is of no release of this folder's recipes"]
    assert main(["status", str(out)]) == 0
    said = capsys.readouterr().out
    assert "baseline: benchmarks/gpqa" in said
    (tmp_path / "empty").mkdir()
    assert main(["status", str(tmp_path / "empty")]) == 0
    assert "no release, finished or not" in capsys.readouterr().out
    assert main(["status", str(tmp_path / "nowhere")]) == 2
