"""Shell completion as a shell asks for it: bash by its own function, zsh by the words that its function sends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flagrelease.cli import main

ROOT = Path(__file__).parents[2]


def completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str, line: str) -> list[str]:
    monkeypatch.setenv("_FLAGRELEASE_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    assert main([]) == 0
    return capsys.readouterr().out.split("\n")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_commands_options_and_recipes_are_completed(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert any("convert" in line for line in completed(monkeypatch, capsys, shell, "flagrelease con"))
    assert any("--checkpoint" in line for line in completed(monkeypatch, capsys, shell, "flagrelease plan --chec"))
    recipes = completed(monkeypatch, capsys, shell, "flagrelease run flash")
    assert any("flash-0731" in line for line in recipes)


@pytest.mark.parametrize("word", ["x", "", "-1", None])
def test_what_bash_never_sends_is_bad_usage_and_no_bug(
    word: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_FLAGRELEASE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "flagrelease con")
    monkeypatch.delenv("COMP_CWORD", raising=False)
    if word is not None:
        monkeypatch.setenv("COMP_CWORD", word)
    assert main([]) == 2
    assert "COMP_CWORD" in capsys.readouterr().err


def test_the_script_for_bash_works_in_bash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "shellingham.detect_shell", lambda: ("bash", "bash")
    )  # of a test's parents none need be a shell
    (tmp_path / "flagrelease").write_text(f'#!/bin/sh\nexec {sys.executable} -m flagrelease "$@"\n')
    (tmp_path / "flagrelease").chmod(0o755)
    assert main(["--show-completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    ask = (
        f"source {script}; COMP_WORDS=(flagrelease veri); COMP_CWORD=1; "
        '_flagrelease_completion flagrelease; echo "${COMPREPLY[@]}"'
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", ask], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["verify"]


def test_h_is_help_of_every_depth(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["plan"], ["baseline"], ["baseline", "record"], ["bench", "serve"]):
        assert main([*words, "-h"]) == 0
        assert "Usage: flagrelease" in capsys.readouterr().out
