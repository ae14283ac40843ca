"""A validation that is killed goes on and writes the same bytes; one that would become another is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from killing import kill_when, lines
from small_validation import LOGITS, Workshop, read_report, recipe, verdicts, write_recipe

from flagrelease import cli
from flagrelease.validate.stages import file_stages

FILES = ("report.json", "report.html")


@pytest.mark.slow
def test_killed_in_logits_and_in_benchmarks_it_writes_the_same_report(
    workshop: Workshop, validated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = workshop.validation(workshop.release("bf16"), out)
    kill_when(words, lambda: any((out / "work" / "logits").rglob("*.safetensors")))
    assert not (out / "state" / "logits.json").exists()
    kill_when(words, lambda: lines(out / "work" / "benchmarks" / "choices.jsonl") >= 4)
    assert (out / "state" / "logits.json").exists()
    assert not (out / "report.json").exists()
    assert cli.main(words) == 0
    for name in FILES:
        assert (out / name).read_bytes() == (validated / name).read_bytes(), name


def test_a_cut_off_line_of_behaviour_is_asked_again(workshop: Workshop, validated: Path, tmp_path: Path) -> None:
    out = shutil.copytree(validated, tmp_path / "out")
    journal = out / "work" / "behaviour" / "answers.jsonl"
    content = journal.read_bytes()
    first = content.index(b"\n") + 1
    journal.write_bytes(content[: first + 20])
    for path in (out / "state" / "behaviour.json", *(out / name for name in FILES)):
        path.unlink()
    assert cli.main(workshop.validation(workshop.release("bf16"), out)) == 0
    for name in FILES:
        assert (out / name).read_bytes() == (validated / name).read_bytes(), name
    assert sorted(journal.read_bytes().splitlines()) == sorted(content.splitlines())


def test_stages_can_be_asked_for_one_after_the_other(workshop: Workshop, validated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["validate", str(workshop.release("bf16")), "--chip", "ascend", "--out", str(out)]
    words += ["--recipe", str(workshop.recipe), "--source", str(workshop.source)]
    assert cli.main(words) == 7  # no baseline yet
    assert cli.main(workshop.validation(workshop.release("bf16"), out, "--until", "weights")) == 0
    for name in ("integrity", "weights"):
        assert (out / "state" / f"{name}.json").read_bytes() == (validated / "state" / f"{name}.json").read_bytes()


def test_what_would_be_another_validation_is_refused(
    workshop: Workshop, validated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(validated, tmp_path / "out")
    report = (out / "report.json").read_bytes()
    lenient = recipe(workshop.source, logits=LOGITS | {"min_documents": 3})
    other_rules = ["--recipe", str(write_recipe(tmp_path / "lenient.yaml", lenient))]
    other_data = tmp_path / "other.jsonl"
    other_data.write_text(workshop.data.read_text() + "\n")
    bf16, fp8 = workshop.release("bf16"), workshop.release("fp8")
    with_other_data = workshop.validation(bf16, out)
    with_other_data[with_other_data.index(f"choices={workshop.data}")] = f"choices={other_data}"
    cases = [
        (workshop.validation(bf16, out, *other_rules), "begun for another set of rules"),
        (workshop.validation(fp8, out, chip="mthreads"), "begun for another release"),
        (workshop.validation(bf16, out, "--layers"), "logits was finished with another look at"),
        (with_other_data, "another data of choices"),
    ]
    for words, said in cases:
        assert cli.main(words) == 4
        assert said in capfd.readouterr().err
    assert (out / "report.json").read_bytes() == report
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.txt").write_text("mine")
    assert cli.main(workshop.validation(workshop.release("bf16"), strange)) == 4
    assert "was not begun by validate" in capfd.readouterr().err
    assert [path.name for path in strange.iterdir()] == ["thesis.txt"]


def test_other_versions_are_not_mixed(
    workshop: Workshop, validated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(validated, tmp_path / "out")
    begun = out / "state" / "begun.json"
    begun.write_text(begun.read_text().replace(read_report(out)["environment"]["torch"], "1.0.0"))
    assert cli.main(workshop.validation(workshop.release("bf16"), out)) == 4
    assert "was begun with torch 1.0.0" in capfd.readouterr().err


@pytest.mark.parametrize("left", [[], ["state"], ["state", "state/lock"], ["state", "state/.begun.json.partial"]])
def test_a_folder_that_was_killed_in_its_first_moment_is_gone_on_from(
    workshop: Workshop, tmp_path: Path, left: list[str]
) -> None:
    """A folder with `state/` and nothing in it was refused for ever."""
    out = tmp_path / "out"
    out.mkdir()
    for name in left:
        (out / name).mkdir() if name == "state" else (out / name).write_bytes(b"pro")
    words = ["validate", str(workshop.release("bf16")), "--chip", "ascend", "--out", str(out), "--until", "integrity"]
    assert cli.main(words) == 0
    assert verdicts(out)["integrity"] == "pass"


def test_two_validations_of_one_folder_do_not_mix(
    workshop: Workshop, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both wrote stages, journals and the report of the same folder, and both said that all was well."""
    out = tmp_path / "out"
    words = ["validate", str(workshop.release("bf16")), "--chip", "ascend", "--out", str(out), "--until", "integrity"]
    second: list[subprocess.CompletedProcess[str]] = []
    original = file_stages.check_files

    def look_around(*arguments: Any) -> Any:
        command = [sys.executable, "-m", "flagrelease", *words]
        second.append(subprocess.run(command, capture_output=True, text=True, check=False))
        return original(*arguments)

    monkeypatch.setattr(file_stages, "check_files", look_around)
    assert cli.main(words) == 0
    assert [done.returncode for done in second] == [4]
    assert f"{out}: in use by another flagrelease process (process {os.getpid()} on " in second[0].stderr
    assert verdicts(out)["integrity"] == "pass"


def test_recording_again_changes_nothing(workshop: Workshop) -> None:
    def whole() -> dict[str, bytes]:
        files = (path for path in workshop.baseline.rglob("*") if path.is_file())
        return {path.relative_to(workshop.baseline).as_posix(): path.read_bytes() for path in files}

    before = whole()
    assert {"behaviour.json", "benchmarks/choices.json", "logits/baseline.json"} <= before.keys()
    assert cli.main(workshop.recording(workshop.baseline)) == 0
    assert whole() == before


def test_a_recording_of_something_else_is_refused(
    workshop: Workshop, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path, said: str, code: int, **validation: object) -> None:
        other = write_recipe(tmp_path / "other.yaml", recipe(workshop.source, **validation))
        parts = ["--part", "benchmarks", "--part", "behaviour"]
        assert cli.main(workshop.recording(folder, *parts, "--recipe", str(other))) == code
        assert said in capfd.readouterr().err

    whole = shutil.copytree(workshop.baseline, tmp_path / "whole")
    asked = {"prompts": 1, "repeats": 4, "max_tokens": 5, "margin": 90}
    refused(whole, "under other rules of behaviour", 5, behaviour=asked)
    killed = shutil.copytree(workshop.baseline, tmp_path / "killed")
    (killed / "behaviour.json").unlink()
    refused(killed, "was begun with another rules", 4, behaviour=asked)
    journal = killed / "work" / "behaviour.jsonl"
    journal.write_bytes(b"{}\n")
    assert cli.main(workshop.recording(killed)) == 4
    assert "is not a log of answers to behaviour prompts" in capfd.readouterr().err
    answers = whole / "benchmarks" / "choices.json"
    answers.write_text(answers.read_text().replace("source ", "source of another ", 1))
    assert cli.main(workshop.recording(whole)) == 5
    assert "another model" in capfd.readouterr().err


def test_a_rank_that_does_not_lead_leaves_files_alone(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    out = tmp_path / "out"
    assert cli.main(workshop.validation(workshop.release("bf16"), out, "--until", "weights")) == 0
    assert not out.exists()
