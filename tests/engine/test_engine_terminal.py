"""`generate` with a person in front of it: a terminal with line editing, Ctrl-C, pasted lines; and early refusals."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine_checkpoint import Checkpoint
from small_tokenizer import write_tokenizer

TURNS = (
    "from flagrelease.engine.generate.turns import Turns\nfor turn in Turns(): print('TURN', ascii(turn), flush=True)\n"
)
UP, LEFT, PASTE, PASTED, CTRL_C, CTRL_D = "\x1b[A", "\x1b[D", "\x1b[200~", "\x1b[201~", "\x03", "\x04"
SECONDS = 240.0  # a busy machine takes its time to import torch


BEGUN = r"(?:\x1b\[\?2004l)?\r*[^\x1b\r\n]"  # the answer has a character: readline's own marks are none


class Terminal:
    """A program in a pseudo-terminal of its own."""

    def __init__(self, *words: str) -> None:
        self.pid, self._file = pty.fork()
        if not self.pid:
            os.environ["TERM"] = "xterm"
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # as a terminal's shell does; pytest may be a background job
            os.execv(sys.executable, [sys.executable, *words])
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._file, text.encode())

    def interrupt(self, pattern: str) -> re.Match[str]:
        """Press Ctrl-C until `pattern` is shown, as a person does.

        CPython 3.11 looks for a signal when `select` is interrupted; one that comes while readline takes a character
        waits for the next key.
        """
        self.type(CTRL_C)
        return self.wait(pattern, CTRL_C)

    def wait(self, pattern: str, again: str = "") -> re.Match[str]:
        """What is shown up to `pattern` is taken away. `again` is typed at each second without output."""
        deadline = time.monotonic() + SECONDS
        while (found := re.search(pattern, self.shown, re.DOTALL)) is None:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._file], [], [], 1.0)[0]:
                try:
                    self.shown += os.read(self._file, 65536).decode(errors="replace")
                except OSError:  # the program is gone
                    assert re.search(pattern, self.shown, re.DOTALL), self.shown
            elif again:
                self.type(again)
        self.shown = self.shown[found.end() :]
        return found

    def code(self) -> int:
        self.wait("$")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_turns_are_edited_repeated_and_pasted() -> None:
    terminal = Terminal("-c", TURNS)
    for typed, turn in (
        ("hallo" + LEFT * 3 + "\x7fe\r", "hello"),  # moved back, one character rubbed out, another put in its place
        (UP + "!\r", "hello!"),  # from the history
        (PASTE + "def f():\n    return 1\n\nf()" + PASTED + "\r", "def f():\\n    return 1\\n\\nf()"),
        ("first\\\rsecond\r", "first\\nsecond"),
        ("   \rnext\r", "next"),  # blank lines are no turns
        ("\N{GRINNING FACE} \N{LATIN SMALL LETTER E WITH ACUTE}\r", "\\U0001f600 \\xe9"),
    ):
        terminal.wait("> ")
        terminal.type(typed)
        assert terminal.wait(r"TURN '(.*?)'\r\n")[1] == turn
    terminal.wait("> ")
    terminal.type("half a")
    terminal.wait("half a")
    terminal.interrupt("> ")  # dropped, and the chat goes on
    terminal.type("whole\r")
    assert terminal.wait(r"TURN '(.*?)'\r\n")[1] == "whole"
    terminal.wait("> ")
    terminal.type(CTRL_D)
    assert terminal.code() == 0


def test_lines_of_a_pipe_are_turns_as_they_are() -> None:
    run = subprocess.run(
        [sys.executable, "-c", TURNS], input=b"a\\\n\n\xff\nlast", capture_output=True, check=True, timeout=SECONDS
    )
    assert run.stdout.decode().split("\n") == [r"TURN 'a\\'", "TURN ''", r"TURN '\udcff'", "TURN 'last'", ""]
    assert not run.stderr


@pytest.fixture(scope="module")
def release(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoint.write_hf(tmp_path_factory.mktemp("release"), "bf16")
    write_tokenizer(folder)
    return folder


HOW = ["--numerics", "bf16", "--dtype", "float32", "--device", "cpu"]


def test_ctrl_c_ends_the_answer_and_not_the_chat(release: Path) -> None:
    words = ["--temperature", "0", "--max-tokens", "3500", "--context", "4096", *HOW]
    terminal = Terminal("-m", "flagrelease", "generate", str(release), "--system", "Be brief.", *words)
    terminal.wait("Enter ends a turn.*Ctrl-D the chat")
    terminal.wait("> ")
    terminal.type("Hi\r")
    terminal.wait(r"Hi\r\n" + BEGUN)
    terminal.type(CTRL_C)
    terminal.wait(r"\(stopped\)")
    terminal.wait("> ")
    terminal.type("again\r")
    terminal.wait(r"again\r\n" + BEGUN)
    terminal.type(CTRL_C)
    terminal.wait(r"\(stopped\).*> ")
    terminal.type("x" * 3000 + "\r")  # does not fit behind the rest
    terminal.wait(r"the context is 4096; this turn is forgotten.*> ")
    terminal.type(CTRL_D)
    assert terminal.code() == 0


PRESSED = """
import signal, sys
from flagrelease.cli import main
from flagrelease.engine.text import Tokenizer

encode = Tokenizer.encode

def pressed(tokenizer, text):
    Tokenizer.encode = encode
    signal.raise_signal(signal.SIGINT)
    return encode(tokenizer, text)

Tokenizer.encode = pressed
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_before_the_first_token_ends_the_answer_and_not_the_chat(release: Path) -> None:
    # the first turn's tokens take seconds with DeepSeek's vocabulary; Ctrl-C meanwhile ended the chat
    words = ["--temperature", "0", "--max-tokens", "3500", "--context", "4096", *HOW]
    terminal = Terminal("-c", PRESSED, "generate", str(release), *words)
    terminal.wait("> ")
    terminal.type("Hi\r")
    terminal.wait(r"Hi\r\n.*\(stopped\).*> ")
    terminal.type("again\r")
    terminal.wait(r"again\r\n" + BEGUN)
    terminal.type(CTRL_C)
    terminal.wait(r"\(stopped\).*> ")
    terminal.type(CTRL_D)
    assert terminal.code() == 0


def test_cut_answers_and_the_system_are_seen(release: Path) -> None:
    words = ["--temperature", "0", "--max-tokens", "3", *HOW]
    command = [sys.executable, "-m", "flagrelease", "generate", str(release), *words]
    spoken = b'"Hi"\n[{"role": "user", "content": "Hi"}]\n'
    answers = subprocess.run(
        [*command, "--prompts", "-", "--system", "Be brief."],
        input=spoken,
        capture_output=True,
        check=True,
        timeout=SECONDS,
    ).stdout.decode()
    counts = [int(found) for found in re.findall(r'"prompt_tokens": (\d+)', answers)]
    assert counts[0] - counts[1] == len("Be brief.")  # the small tokenizer has a token for each of these bytes
    one = subprocess.run([*command, "--prompt", "Hi"], capture_output=True, check=True, timeout=SECONDS)
    assert b"(cut off after 3 tokens: --max-tokens or --context allows no more)" in one.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--top-p", "0"], "top_p"),
        (["--temperature", "nan"], "temperature"),
        (["--prompt", "x" * 5000], "tokens and 512 more"),
        (["--context", "4097"], "the model allows 1 to 4096"),
        (["--mode", "raw", "--prompt", "x", "--system", "y"], "--system is for chats"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["--ranks", "many"], "--ranks many"),
        (["--prompts", "-"], "standard input: no prompt"),
    ],
)
def test_usage_errors_load_no_torch(release: Path, words: list[str], said: str) -> None:
    script = (
        "import sys\nfrom flagrelease.cli import main\ncode = main(sys.argv[1:])\n"
        "sys.exit(9 if 'torch' in sys.modules else code)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, "generate", str(release), *words],
        input=b"",
        capture_output=True,
        timeout=SECONDS,
    )
    assert (run.returncode, said in run.stderr.decode()) == (2, True), run.stderr.decode()


def test_one_answer_is_called_one() -> None:
    from flagrelease.engine.generate.answer_file import complete, resuming

    assert complete(Path("a"), 1) == "a: the answer is there already, nothing to do"
    assert resuming(Path("a"), 1, 1) == "a: resuming, 1 answer is there and 1 is to come"
    assert resuming(Path("a"), 2, 3) == "a: resuming, 2 answers are there and 3 are to come"
