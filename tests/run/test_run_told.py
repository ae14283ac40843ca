"""Who is told of a run: CI by JUnit XML, a command by its standard input; also of a run that was killed or refused."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import junitparser
import pytest
from night_runs import run

from flagrelease.cli import main
from flagrelease.records.night import read_night
from flagrelease.run.notification import notify

Capture = pytest.CaptureFixture[str]


def test_junit_is_read_by_a_reader_of_its_own(night: Path, tmp_path: Path, capsys: Capture) -> None:
    (night / "out" / "bf16-hf" / "config.json").write_text("{}")
    ran = run(capsys, night / "recipe.yaml", night / "out", "--junit", tmp_path / "report" / "junit.xml")
    assert ran.code == 4
    document = junitparser.JUnitXml.fromfile(str(tmp_path / "report" / "junit.xml"))
    assert (document.tests, document.failures, document.errors) == (9, 0, 1)
    suites = {suite.name: list(suite) for suite in document}
    assert list(suites) == ["ascend bf16-hf", "mthreads fp8-hf", "nvidia fp8-hf"]
    first, second, third = suites["ascend bf16-hf"]
    assert (first.name, first.classname) == ("convert", "flagrelease.ascend.bf16-hf")
    (error,) = first.result
    assert isinstance(error, junitparser.Error)
    assert "config.json is missing or has another size" in error.message
    assert [type(case.result[0]) for case in (second, third)] == [junitparser.Skipped] * 2
    assert all(case.is_passed and "nothing to do" in case.system_out for case in suites["nvidia fp8-hf"])


def test_a_verdict_against_a_release_is_a_failure_for_ci(night: Path, tmp_path: Path, capsys: Capture) -> None:
    victim = sorted((night / "out" / "fp8-hf").glob("*.safetensors"))[0]
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run(capsys, night / "recipe.yaml", night / "out", "--junit", tmp_path / "junit.xml").code == 5
    document = junitparser.JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    assert (document.failures, document.errors) == (2, 0)


def test_what_ci_reads_is_of_this_run_whatever_becomes_of_it(
    night: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run leaves an error instead of yesterday's success; a place that cannot be written is found at once."""
    junit, told = tmp_path / "junit.xml", tmp_path / "told.json"
    words = ["run", str(night / "recipe.yaml"), "--out", str(night / "out"), "--junit", str(junit)]
    assert main(words) == 0
    monkeypatch.setattr("flagrelease.run.nightly.run_recipe", lambda *_: sys.exit(9))  # nobody is told any more
    assert main(words) == 9
    document = junitparser.JUnitXml.fromfile(str(junit))
    assert (document.tests, document.errors) == (1, 1)
    monkeypatch.setattr("flagrelease.run.nightly.run_recipe", lambda *_: pytest.fail("it was begun"))
    capsys.readouterr()
    assert main([*words[:-1], str(night / "recipe.yaml" / "junit.xml")]) == 4
    assert "cannot be written" in capsys.readouterr().err
    monkeypatch.undo()
    hook = tmp_path / "hook.py"
    hook.write_text(HOOK)
    nowhere = ["run", str(night / "recipe.yaml"), "--out", str(tmp_path / "new"), "--checkpoint", str(tmp_path / "no")]
    assert (
        main([*nowhere, "--junit", str(junit), "--notify", f"'{sys.executable}' '{hook}' '{told}' 0 {{verdict}}"]) == 2
    )
    assert not (tmp_path / "new").exists()
    found = json.loads(told.read_text())
    assert (found["verdict"], "no such checkpoint folder" in found["words"][1]) == ("failed", True)
    (suite,) = junitparser.JUnitXml.fromfile(str(junit))
    (error,) = next(iter(suite)).result
    assert "no such checkpoint folder" in error.message


def test_what_the_system_refuses_ends_the_record_too(
    night: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise OSError(116, "Stale file handle", "/mnt/weights")

    monkeypatch.setattr("flagrelease.run.nightly.run_recipe", gone)
    assert main(["run", str(night / "recipe.yaml"), "--out", str(night / "out")]) == 4
    last = read_night(max((night / "out" / "nights").iterdir()))
    assert (last.verdict, last.error) == ("failed", "resource: /mnt/weights: Stale file handle")
    assert last.ended


def test_a_recipe_of_any_name_is_recorded(night: Path, tmp_path: Path, capfd: Capture) -> None:
    recipe = (night / "recipe.yaml").rename(night / os.fsdecode(b"\x01<&]]>\xff.yaml"))
    ran = run(capfd, recipe, night / "out", "--junit", tmp_path / "junit.xml")
    assert ran.code == 0
    assert ran.night.recipe == "\x01<&]]>\ufffd.yaml"
    assert junitparser.JUnitXml.fromfile(str(tmp_path / "junit.xml")).name == "flagrelease run ?<&]]>\ufffd.yaml"


HOOK = """\
import json, pathlib, sys
document = json.load(sys.stdin)
pathlib.Path(sys.argv[1]).write_text(json.dumps({"words": sys.argv[2:], "verdict": document["verdict"]}))
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_is_told_how_the_night_was(night: Path, tmp_path: Path, capsys: Capture, code: int) -> None:
    """Words of the verdict are one word for the command, whatever is in them; a hook that fails fails no run."""
    hook, told = tmp_path / "a hook.py", tmp_path / "told $(touch pwned); x.json"
    hook.write_text(HOOK)
    command = f"'{sys.executable}' '{hook}' '{told}' {code} {{verdict}}"
    ran = run(capsys, night / "recipe.yaml", night / "out", "--notify", command)
    assert ran.code == 0
    found = json.loads(told.read_text())
    assert found == {
        "words": [str(code), "nothing to do: 3 releases of 3 chips are validated"],
        "verdict": "nothing-to-do",
    }
    notes = () if not code else (f"--notify: {sys.executable} ended with exit code 3",)
    assert ran.night.notes == notes
    missing = run(capsys, night / "recipe.yaml", night / "out", "--notify", "no-such-program-here {verdict}")
    assert (missing.code, missing.night.notes) == (0, ("--notify: no-such-program-here: No such file or directory",))


def test_a_command_that_does_not_end_is_killed_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the command itself was killed, so that a `curl` in a script of the user's hung on."""
    monkeypatch.setattr("flagrelease.run.notification._PATIENCE", 2)
    inner = tmp_path / "pid"
    assert (
        notify(["sh", "-c", f"sleep 600 & echo $! >'{inner}'; wait"], b"{}", "")
        == "--notify: sh did not end within 2 s"
    )
    stat, until = Path("/proc", inner.read_text().strip(), "stat"), time.monotonic() + 240
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until
        time.sleep(0.01)
