"""`--log-file`: what stderr gets, with the time, without secrets, bars and colours; also of ranks and of bugs."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from flagrelease import cli, console
from flagrelease.errors import UsageError
from flagrelease.log_file import LogFile
from flagrelease.ranks.command import _own_words

TIMED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")


def lines(path: Path) -> list[str]:
    found = path.read_text(encoding="utf-8").splitlines()
    assert all(TIMED.match(line) for line in found)
    return [TIMED.sub("", line) for line in found]


def test_a_command_logs_what_it_says_and_says_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, before = tmp_path / "log", sys.stderr
    for _ in range(2):  # appended
        assert cli.main(["--log-file", str(log), "inspect", "nowhere"]) == 3
    assert sys.stderr is before
    said = capsys.readouterr().err.splitlines()
    assert lines(log) == said
    assert "checkpoint: nowhere" in said[-1]
    assert "checkpoint" not in lines(log)[0]


def test_secrets_bars_and_colours_stay_out(tmp_path: Path) -> None:
    screen = io.StringIO()
    log = LogFile(tmp_path / "log", screen, rank=3)
    drawn = "\x1b[1A\x1b[2Kconvert ━━━━━╸  10 of 20\n"
    text = f"\x1b[31mred\x1b[0m\n{drawn}⠋ thinking\nfirst\rlast\nBearer abc.def\nhf_abcdefgh12345\nwhole"
    assert log.write(text) == len(text)
    assert screen.getvalue() == text, "the terminal gets everything"
    assert log.end(None) is screen
    told = ["red", "last", "Bearer [hidden]", "[hidden]", "whole"]
    assert lines(tmp_path / "log") == [f"rank 3: {line}" for line in told]


def test_it_is_as_much_a_terminal_as_stderr(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    log = LogFile(tmp_path / "log", Terminal())
    assert log.isatty()
    assert not LogFile(tmp_path / "log", io.StringIO()).isatty()


def test_a_bar_of_the_console_leaves_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", LogFile(tmp_path / "log", Terminal()))
    with console.progress("convert", 1000) as tracker:
        tracker.to(500)
        tracker.to(1000)
    assert [line.partition(" in ")[0] for line in lines(tmp_path / "log")] == ["convert: 1 kB"]


def test_a_bug_is_logged_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("planted")

    monkeypatch.setattr(cli.console, "show", broken)
    with pytest.raises(AssertionError, match="planted"):
        cli.main(["--log-file", str(tmp_path / "log"), "inspect", "examples/tiny/flagrelease-tiny-v4"])
    assert lines(tmp_path / "log")[-1] == "AssertionError: planted"
    assert "Traceback (most recent call last):" in lines(tmp_path / "log")


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--log-file", str(tmp_path), "inspect", "nowhere"]) == 2
    assert f"--log-file {tmp_path}: cannot be written (Is a directory)" in capsys.readouterr().err
    with pytest.raises(UsageError):
        LogFile(tmp_path / "none" / "log", io.StringIO())


def test_ranks_get_their_own_options_before_the_command() -> None:
    words = ("--log-file", "a", "--status=s", "--status", "t", "--log-file=b", "serve", "R", "--ranks", "2")
    assert _own_words(words) == ["serve", "R", "--ranks", "2"]
