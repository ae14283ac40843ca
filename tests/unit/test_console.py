"""Tables and progress as a terminal and a log show them."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from flagrelease.console import Display, human_number, out, progress, table


def test_a_narrow_terminal_cuts_nothing_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    shown = table("operator", ">tokens a second")
    shown.add_row("fp4_act_quant_roundtrip", "123456789.5")
    out().print(shown)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 20
    words = ("operator", "tokensasecond", "fp4_act_quant_roundtrip", "123456789.5")
    assert Counter("".join(text.split())) == Counter("".join(words))


def test_words_stay_whole_while_there_is_room_for_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight columns of a status in 80 letters: `converted`, a chip and a release each keep to one line."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = table("chip", "release", "converted", "validated", "weights", ">published", "missing")
    shown.add_row(
        "kunlunxin", "int8-experts-hf", "[green]complete[/]", "missing", "-", "-", "convert, validate, publish"
    )
    out().print(shown)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert set(text.split()) >= {"kunlunxin", "int8-experts-hf", "converted", "validated", "complete", "validate,"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.01234, "0.01234"),
        (201.49, "201.5"),
        (999.9, "999.9"),
        (999.96, "1,000"),
        (10623.7, "10,624"),
        (-1234.5, "-1,234"),
    ],
)
def test_large_numbers_have_no_exponent(value: float, shown: str) -> None:
    assert human_number(value) == shown


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """A rate that counts what an earlier run had done would promise an end that does not come."""
    now = 0.0
    display = Display(clock=lambda: now)
    for second, done in ((0, 500), (4, 540), (10, 600), (12, 620), (50, 1000), (51, 1000)):
        now = float(second)
        display("logits", done, 1000, "tokens")
        display("weights", done * 1_000_000, 1_000_000_000, "B")
    assert capsys.readouterr().err.splitlines() == [
        "logits: 600 of 1,000 tokens (60%), 10 tokens/s, 40 s left",
        "weights: 600 MB of 1 GB (60%), 10 MB/s, 40 s left",
        "logits: 1,000 tokens in 50 s (10 tokens/s)",
        "weights: 1 GB in 50 s (10 MB/s)",
    ]


def test_work_that_ends_before_its_total_has_a_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("publish", 1000) as tracker:
        tracker.add(400)
    with progress("check", 0):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" in ")[0] for line in lines] == ["publish: 400 B", "check: 0 B"]


def test_a_quiet_display_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(quiet=True) as display:
        display("logits", 3, 3, "tokens")
        display.finish("logits")
    assert capsys.readouterr() == ("", "")


def test_results_go_to_stdout_while_a_bar_is_on_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """rich takes stdout over while it shows a bar: `generate --prompts F > answers.jsonl` would write an empty file."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Display() as display:
        display("generate", 1, 2, "answers")
        print('{"index": 0}')
        display("generate", 2, 2, "answers")
    shown = capsys.readouterr()
    assert shown.out == '{"index": 0}\n'
    assert "generate: 2 answers in " in shown.err, "the last line stays when the bar is gone"
