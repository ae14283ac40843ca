"""What a night job needs of `run`: machines split by role, limits, reports for CI, a record, somebody who is told."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import junitparser
import pytest
import yaml
from night_runs import THREE, run, write_recipe

from flagrelease.cli import main
from flagrelease.convert.running.conversion import convert
from flagrelease.errors import ResourceError
from flagrelease.ranks import launch
from flagrelease.records.night import read_night
from flagrelease.run import conversion
from flagrelease.run.conversion import disk_used
from flagrelease.run.limits import time_limit
from flagrelease.validate.stages import file_stages

Capture = pytest.CaptureFixture[str]


def without_checkpoint(recipe: Path) -> Path:
    """As it lies on the chip's machine."""
    document = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    del document["source"]["path"]
    recipe.write_text(yaml.safe_dump(document), encoding="utf-8")
    return recipe


def test_two_machines_are_joined_by_the_folder(
    night: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has the checkpoint, the second another processor, other versions, and the chip."""
    recipe, first, second = night / "recipe.yaml", tmp_path / "cpu", tmp_path / "chip"
    shutil.copytree(night / "out", first)
    shutil.rmtree(first / "validation")
    shutil.rmtree(first / "records")
    ran = run(capsys, recipe, first, "--until", "verify")
    assert (ran.code, ran.document["summary"]) == (
        0,
        "3 releases of 3 chips are proved; there was something to do for 3 of them",
    )
    shutil.copytree(first, second)
    without_checkpoint(recipe)
    machine = {"flagrelease": "0", "python": "9.9", "system": "Linux aarch64", "torch": "9"}
    monkeypatch.setattr("flagrelease.run.validation.describe_environment", lambda _: machine)
    monkeypatch.setattr("flagrelease.validate.stages.run.describe_environment", lambda _: machine)
    monkeypatch.setattr(file_stages, "check_weights", lambda *_: pytest.fail("the weights were proved already"))
    ran = run(capsys, recipe, second, "--from", "validate", "--publish", tmp_path / "mirror", "--yes")
    assert ran.code == 0
    assert set(ran.status) == {f"{chip} {stage}" for chip in THREE for stage in ("validate", "publish")}
    assert set(ran.status.values()) == {"done"}
    report = json.loads((second / "validation" / "bf16-hf-ascend" / "report.json").read_bytes())
    assert (report["verdict"], report["environment"]["system"]) == ("pass", "Linux aarch64")
    again = run(capsys, recipe, second, "--from", "validate", "--publish", tmp_path / "mirror", "--yes")
    assert again.document["summary"] == "nothing to do: 3 releases of 3 chips are published"
    shutil.copytree(second / "validation", first / "validation", dirs_exist_ok=True)  # the reports come back
    ran = run(capsys, recipe, first, "--from", "publish", "--publish", tmp_path / "other", "--yes")
    assert (ran.code, len(list((tmp_path / "other").iterdir()))) == (0, 3)
    # A release can also come from where it was published: what a hub's client downloads is such a folder.
    third = tmp_path / "from a hub"
    for name, repo in (("bf16-hf", "small-v4-ascend-FlagOS"), ("fp8-hf", "small-v4-nvidia-FlagOS")):
        shutil.copytree(tmp_path / "mirror" / repo, third / name)
    shutil.copytree(first / "validation", third / "validation")
    ran = run(capsys, recipe, third, "--from", "validate")
    assert ran.document["summary"] == "nothing to do: 3 releases of 3 chips are validated"


def test_what_was_not_brought_is_said(night: Path, tmp_path: Path, capsys: Capture) -> None:
    recipe = without_checkpoint(night / "recipe.yaml")
    shutil.rmtree(night / "out" / "fp8-hf")
    shutil.rmtree(night / "out" / "validation" / "bf16-hf-ascend")
    ran = run(capsys, recipe, night / "out", "--from", "validate")
    assert (ran.code, set(ran.status.values())) == (4, {"failed"})
    assert "bring the folder" in ran.detail("nvidia", "validate")
    assert "does not say that its weights are those of the source" in ran.detail("ascend", "validate")
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--from", "verify"]) == 2
    assert "names someone/small-v4@r1, but no folder on this machine" in capsys.readouterr().err
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--from", "verify", "--until", "convert"]) == 2
    assert "--from verify contradicts --until convert" in capsys.readouterr().err


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["", "in the background"])
def test_the_clock_ends_what_a_shell_started_in_the_background_too(handler: Any) -> None:
    """A shell without a terminal lets its background jobs ignore SIGINT, and a nightly job went on for ever."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt), time_limit(3600) as limit:
            signal.raise_signal(signal.SIGALRM)
        assert limit.reached
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_clock_ends_ranks_in_the_background_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks inherit that SIGINT is ignored, so that what was passed on to them ended nothing."""

    def start(words: list[str], rank: int, *_: object) -> launch._Member:
        sleeper = [sys.executable, "-c", "import time; time.sleep(20)"]
        return launch._Member(rank, subprocess.Popen(sleeper, start_new_session=True), None)

    monkeypatch.setattr(launch, "_start", start)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), time_limit(0.5):
            launch.launch([], 2)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("stage", ["convert", pytest.param("verify", marks=pytest.mark.slow)])
def test_at_the_time_limit_a_run_stops_and_the_next_one_resumes(
    night: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """The clock rings when the stage has begun; no test waits for it."""
    recipe, out = night / "recipe.yaml", tmp_path / "new" if stage == "convert" else night / "out"
    shutil.rmtree(night / "out" / "validation")
    shutil.rmtree(night / "out" / "records")

    def ring(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGALRM)
        pytest.fail("it went on")

    earlier = signal.getsignal(signal.SIGALRM)
    with monkeypatch.context() as patch:
        patch.setattr(*((conversion, "run_conversion") if stage == "convert" else (file_stages, "check_weights")), ring)
        ran = run(capsys, recipe, out, "--time-limit", "2h", "--junit", tmp_path / "junit.xml")
    assert signal.getsignal(signal.SIGALRM) == earlier
    assert (ran.code, ran.document["verdict"]) == (8, "stopped")
    assert ran.status[f"ascend {stage}"] == ran.status[f"nvidia {stage}"] == "stopped"
    assert "3 not finished" in ran.document["summary"]
    assert (ran.night.exit_code, ran.night.verdict, ran.night.summary) == (8, "stopped", ran.document["summary"])
    assert junitparser.JUnitXml.fromfile(str(tmp_path / "junit.xml")).errors == 3
    assert run(capsys, recipe, out).code == 0


@pytest.mark.parametrize(("words", "said"), [
    (("--time-limit", "tomorrow"), "write a time as"),
    (("--time-limit", "6"), "write a time as"),
    (("--time-limit", "0h"), "write a time as"),
    (("--disk-limit", "much"), "write a size as"),
    (("--notify", "say 'it"), "No closing quotation"),
    (("--notify", ""), "name a command"),
])  # fmt: skip
def test_limits_and_hooks_that_cannot_be_read(
    tmp_path: Path, capsys: Capture, words: tuple[str, ...], said: str
) -> None:
    assert main(["run", str(write_recipe(tmp_path)), "--out", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_the_disk_limit_leaves_no_room_for_is_not_begun(night: Path, tmp_path: Path, capsys: Capture) -> None:
    """bf16-hf comes first and does not fit, fp8-hf is smaller."""
    out, (bf16, fp8) = tmp_path / "small", (disk_used(night / "out" / name) for name in ("bf16-hf", "fp8-hf"))
    assert fp8 < bf16
    ran = run(capsys, night / "recipe.yaml", out, "--disk-limit", str((fp8 + bf16) // 2))
    assert (ran.code, ran.status["ascend convert"], ran.status["nvidia validate"]) == (4, "failed", "done")
    assert "are taken" in ran.detail("ascend", "convert")
    assert not (out / "bf16-hf").exists()
    assert run(capsys, night / "recipe.yaml", out, "--disk-limit", "1GB").code == 0
    assert run(capsys, night / "recipe.yaml", out, "--disk-limit", "1kB").code == 0, "there is nothing to write"


def test_each_run_leaves_a_record(night: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    nights = night / "out" / "nights"
    (first,) = map(read_night, nights.iterdir())
    assert (first.verdict, first.exit_code, first.first, first.last) == ("done", 0, "convert", "validate")
    assert [chip.chip for chip in first.chips] == list(THREE)
    assert first.ended is not None
    assert first.began <= first.ended
    ascend = first.chips[0]
    assert (ascend.verdict, ascend.repository, ascend.history) == ("pass", "FlagRelease/small-v4-ascend-FlagOS", ())
    files = [path for path in (night / "out" / "bf16-hf").rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert ascend.bytes == sum(path.stat().st_size for path in files)
    convert_, verify = ascend.steps["convert"], ascend.steps["verify"]
    assert (convert_.kept, convert_.why) == (False, "there is no release yet")
    assert convert_.bytes_per_second
    assert verify.bytes_per_second
    second = run(capsys, night / "recipe.yaml", night / "out").night
    assert {step.kept for chip in second.chips for step in chip.steps.values()} == {True}
    assert second.source == first.source
    assert len(list(nights.iterdir())) == 2

    def gone(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "gather_claims", gone)
    assert main(["run", str(night / "recipe.yaml"), "--out", str(night / "out")]) == 130
    assert "interrupted" in read_night(max(nights.iterdir())).summary
    document = yaml.safe_load((night / "recipe.yaml").read_text())
    document["source"]["path"] = "/no/such/folder"
    (night / "recipe.yaml").write_text(yaml.safe_dump(document))
    assert main(["run", str(night / "recipe.yaml"), "--out", str(night / "out")]) == 2
    refused = read_night(max(nights.iterdir()))
    assert (refused.verdict, refused.exit_code, refused.chips) == ("failed", 2, ())
    assert refused.error == "usage: /no/such/folder: no such checkpoint folder"


def test_releases_that_cannot_be_made_together_are_made_one_by_one(
    night: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are made in one pass over the checkpoint: what one could not have, none had."""
    passes: list[list[str]] = []

    def fails_for_bf16(plan: Any, *arguments: Any, **options: Any) -> Any:
        passes.append([release.target.folder for release in plan.releases])
        if "bf16-hf" in passes[-1]:
            raise ResourceError("layers.0.ffn.experts.0.w1.weight: planted")
        return convert(plan, *arguments, **options)

    monkeypatch.setattr(conversion, "run_conversion", fails_for_bf16)
    ran = run(capsys, night / "recipe.yaml", tmp_path / "out")
    assert (ran.code, ran.status["ascend convert"], ran.status["nvidia validate"]) == (4, "failed", "done")
    assert "planted" in ran.detail("ascend", "convert")
    assert passes == [["bf16-hf", "fp8-hf"], ["bf16-hf"], ["fp8-hf"]]


def test_what_a_folder_takes_is_counted_while_another_run_writes_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that was renamed meanwhile refused the whole run; a folder that cannot be read took nothing."""
    for name in ("stays", "vanishes"):
        (tmp_path / name).write_bytes(bytes(7))
    lstat = Path.lstat

    def late(path: Path) -> Any:
        if path.name == "vanishes":
            path.unlink()
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", late)
    assert disk_used(tmp_path) == 7
    assert disk_used(tmp_path / "not there yet") == 0
    monkeypatch.setattr(
        "os.scandir", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied", path))
    )
    with pytest.raises(PermissionError):
        disk_used(tmp_path)
