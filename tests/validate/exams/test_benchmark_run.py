"""A side from lm-eval, journal and answerer: killed and resumed, leaking nothing, checked against lm-eval's scores."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from scripted_exam import MARKER, ScriptedAnswerer, choice_exam, choice_rules, nothing

from flagrelease.errors import ResourceError, UsageError, VerificationError
from flagrelease.validate.exams.answerer import derive_seed
from flagrelease.validate.exams.exam import Exam
from flagrelease.validate.exams.harness import tasks
from flagrelease.validate.exams.run import examine, run_side
from flagrelease.validate.exams.side import Side
from flagrelease.validate.seeds import seed_of


@pytest.fixture
def exam(tmp_path: Path) -> Exam:
    return choice_exam(tmp_path / "data")


def side(exam: Exam, journal: Path, repeats: int = 4, **script: object) -> Side:
    answerer = ScriptedAnswerer(exam, **script)  # type: ignore[arg-type]
    return run_side(exam, answerer, "subject", journal, repeats, nothing)


def test_every_question_is_answered_as_often_as_asked_for_with_a_seed_of_its_own(exam: Exam, tmp_path: Path) -> None:
    answerer = ScriptedAnswerer(exam)
    progress: list[tuple[int, int]] = []
    result = run_side(exam, answerer, "s", tmp_path / "j", 5, lambda *at: progress.append(at))
    assert Counter(ask.item for ask in answerer.asked) == {item.id: 5 for item in exam.items}
    assert len({ask.seed for ask in answerer.asked}) == 60
    assert all(ask.seed == derive_seed(exam.rules, ask.item, ask.repeat) for ask in answerer.asked)
    assert result.repeats == 5
    assert [item.id for item in result.items] == [item.id for item in exam.items]
    assert progress[0] == (0, 60)
    assert progress[-1] == (60, 60)


def test_seeds_are_recorded_ones() -> None:
    """The first 31 bits of the SHA-256: another version of this package must not change them."""
    assert derive_seed(choice_rules(), "item-1", 3) == SEED_BY_SHA256SUM >> 1
    assert seed_of(0, "Choices", "item-1", 3) == SEED_BY_SHA256SUM >> 1


# printf '0\nChoices\nitem-1\n3' | sha256sum | cut -c1-8
SEED_BY_SHA256SUM = 0x917F983D


def test_the_scores_are_the_shares_of_right_answers(exam: Exam, tmp_path: Path) -> None:
    chosen = {item.id for item in exam.items[:5]}
    result = side(exam, tmp_path / "j", skill=lambda item: float(item in chosen))
    assert result.scores().mean(axis=1).tolist() == [1.0] * 5 + [0.0] * 7


@pytest.mark.parametrize("answers", [0, 1, 17, 47])
def test_killed_and_resumed_it_is_the_same_side(exam: Exam, tmp_path: Path, answers: int) -> None:
    whole = side(exam, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        side(exam, tmp_path / "cut", interrupt_after=answers)
    content = (tmp_path / "cut").read_bytes()
    (tmp_path / "cut").write_bytes(content + b'{"item":"item-0","rep')  # a line that a crash tore
    answerer = ScriptedAnswerer(exam)
    assert run_side(exam, answerer, "subject", tmp_path / "cut", 4, nothing) == whole
    assert len(answerer.asked) == 48 - answers
    assert side(exam, tmp_path / "cut", interrupt_after=0) == whole  # nothing is asked again
    assert all(json.loads(line) for line in (tmp_path / "cut").read_text().splitlines())


def test_more_repeats_go_on_from_fewer(exam: Exam, tmp_path: Path) -> None:
    first = side(exam, tmp_path / "j", repeats=4)
    answerer = ScriptedAnswerer(exam)
    more = run_side(exam, answerer, "subject", tmp_path / "j", 8, nothing)
    assert len(answerer.asked) == 48
    assert more.first(4) == first
    assert more == side(exam, tmp_path / "other", repeats=8)


def test_a_journal_of_another_run_is_refused(exam: Exam, tmp_path: Path) -> None:
    side(exam, tmp_path / "j")
    with pytest.raises(ResourceError, match="begun with another stack;"):
        side(exam, tmp_path / "j", stack="another machine")
    with pytest.raises(ResourceError, match="begun with another subject;"):
        run_side(exam, ScriptedAnswerer(exam), "another release", tmp_path / "j", 4, nothing)
    hotter = choice_exam(tmp_path / "hotter", temperature=0.7)
    with pytest.raises(ResourceError, match="begun with another temperature;"):
        side(hotter, tmp_path / "j")
    longer = choice_exam(tmp_path / "longer", count=13)
    with pytest.raises(ResourceError, match="begun with another exam sha256 and "):
        side(longer, tmp_path / "j")


def test_a_damaged_journal_is_cut_and_asked_again(exam: Exam, tmp_path: Path) -> None:
    """It was refused, so that one torn line made all answers worthless."""
    whole = side(exam, tmp_path / "j")
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    damaged = lines[3][:20] + b"\n"
    (tmp_path / "j").write_bytes(b"".join([*lines[:3], damaged, *lines[4:]]))
    answerer = ScriptedAnswerer(exam)
    assert run_side(exam, answerer, "subject", tmp_path / "j", 4, nothing) == whole
    assert len(answerer.asked) == len(lines) - 3


def test_two_processes_do_not_share_a_journal(exam: Exam, tmp_path: Path) -> None:
    def again(there: int, wanted: int) -> None:
        with pytest.raises(ResourceError, match="another flagrelease process"):
            side(exam, tmp_path / "j")

    run_side(exam, ScriptedAnswerer(exam), "s", tmp_path / "j", 4, again)


def test_no_question_leaves_the_process(
    exam: Exam, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Every question, option and answer holds the marker; no file, log or report does, nor lm-eval's caches."""
    caplog.set_level("DEBUG")
    out = tmp_path / "out"
    native = side(exam, out / "native.jsonl", invalid=0.1)
    native.save(out / "native.json")
    benchmark, chip = examine(exam, ScriptedAnswerer(exam), "chip", out / "chip.jsonl", native, nothing)
    chip.save(out / "chip.json")
    (out / "report.json").write_text(benchmark.model_dump_json())
    assert MARKER in exam.items[0].prompt
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) == 5
    assert not [path for path in written if MARKER in path.read_text()]
    assert MARKER not in caplog.text
    said = capfd.readouterr()
    assert MARKER not in said.out + said.err
    for name in ("native.jsonl", "chip.jsonl"):
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o600


SCRIPT = """
import socket, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from scripted_exam import ScriptedAnswerer, choice_exam
from flagrelease.validate.exams.run import run_side

def no_network(*_):
    raise AssertionError("asked for an address")

socket.getaddrinfo = socket.socket.connect = no_network
exam = choice_exam(Path("data"))

def heard(there, wanted):
    if there == wanted:
        print("heard", file=sys.stderr)

run_side(exam, ScriptedAnswerer(exam), "s", Path("out/journal"), 4, heard)
"""


def test_the_harness_keeps_no_copy_and_calls_nobody(tmp_path: Path) -> None:
    """In a process with a home of its own: datasets and lm-eval have caches, and one of them telemetry."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "TMPDIR": str(home), "LM_HARNESS_CACHE_PATH": str(home / "lm")}
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(Path(__file__).parent)]
    done = subprocess.run(command, cwd=home, env=environment, check=True, capture_output=True, text=True)
    written = {path.relative_to(home) for path in home.rglob("*") if path.is_file()}
    assert {path for path in written if MARKER in (home / path).read_text()} == {Path("data/choices.jsonl")}
    assert Path("out/journal") in written
    assert (done.stdout, done.stderr) == ("", "heard\n")  # and neither its progress bars nor its advice


def test_a_side_is_saved_and_read(exam: Exam, tmp_path: Path) -> None:
    result = side(exam, tmp_path / "j", invalid=0.2)
    result.save(tmp_path / "side.json")
    assert Side.read(tmp_path / "side.json") == result
    with pytest.raises(UsageError, match="no recorded answers"):
        Side.read(tmp_path / "none.json")
    document = json.loads((tmp_path / "side.json").read_text())
    del document["items"][4]["answers"][0]
    (tmp_path / "side.json").write_text(json.dumps(document))
    with pytest.raises(VerificationError, match="items have different numbers of answers"):
        Side.read(tmp_path / "side.json")


def test_an_harness_that_scores_only_the_first_answer_is_caught(
    exam: Exam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 2: with lm-eval's default filter `take_first` avg@k silently is the score of one answer."""
    honest = tasks.score
    monkeypatch.setattr(tasks, "score", lambda document, results: honest(document, [results[0][:1]]))
    with pytest.raises(VerificationError, match="lm-eval's scores are not those of the answers"):
        side(exam, tmp_path / "j", skill=lambda _: 0.5)


def test_a_harness_that_asks_something_else_is_caught(
    exam: Exam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "prompt", lambda document: document["prompt"] + "\n")
    answerer = ScriptedAnswerer(exam)
    with pytest.raises(VerificationError, match="item-0: lm-eval asks another question") as caught:
        run_side(exam, answerer, "s", tmp_path / "j", 4, nothing)
    assert MARKER not in str(caught.value)
    assert not answerer.asked


def test_long_answers_that_never_differ_stop_the_run_early(exam: Exam, tmp_path: Path) -> None:
    """Trap: stock lm-eval sends the same seed with every repeat, and a server that honours it answers k times alike."""
    answerer = ScriptedAnswerer(exam, constant=True, tokens=4000)
    with pytest.raises(VerificationError, match=r"constant seed, or answers from a cache; mend that and remove .*/j$"):
        run_side(exam, answerer, "s", tmp_path / "j", 8, nothing)
    assert len(answerer.asked) < 48
    side(exam, tmp_path / "short", constant=True, tokens=5)  # short ones may be alike; the comparison says so
    side(exam, tmp_path / "long", tokens=4000)


def test_a_mode_that_does_not_take_effect_stops_the_run_early(tmp_path: Path) -> None:
    thinking = choice_exam(tmp_path / "data", mode="thinking")
    answerer = ScriptedAnswerer(thinking)
    with pytest.raises(VerificationError, match=r"mode thinking was asked for.*all of 16 answers had none"):
        run_side(thinking, answerer, "s", tmp_path / "j", 4, nothing)
    assert len(answerer.asked) == 16
    side(thinking, tmp_path / "j2", reasoned=True)


def test_a_prompt_that_changes_its_length_is_caught(exam: Exam, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        side(exam, tmp_path / "j", interrupt_after=20, prompt_tokens=50)
    with pytest.raises(VerificationError, match="the same prompt had 50 and 51 tokens"):
        side(exam, tmp_path / "j", prompt_tokens=51)


def test_without_lm_eval_the_extra_is_named(exam: Exam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("lm_eval", "flagrelease.validate.exams.harness"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ResourceError, match=r"pip install '\.\[eval\]'"):
        side(exam, tmp_path / "j")
