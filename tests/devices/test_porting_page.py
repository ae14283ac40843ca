"""docs/porting.md done with the example's row in the table: what it prints is what the page says, in words.

The page's other commands, which need no row, are run as every page's (test_commands_run.py).
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell_blocks import ROOT

from flagrelease.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PAGE = ROOT / "docs/porting.md"
TEXTS = "examples/tiny/documents.py"
# Exit code of each command, in the page's order. This machine has no card (4).
ENDS = {"chips": 0, "doctor": 4, "convert": 0, "verify": 0, "generate": 0, "baseline": 0, "validate": 0}


def steps() -> Iterator[tuple[list[list[str]], list[str]]]:
    """The words of the commands of each block that need no card, and the lines that the page says the block prints."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for (language, block), (after, printed) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        ours = [shlex.split(line)[1:] for line in block.splitlines() if line.startswith("flagrelease ")]
        commands = [words for words in ours if words[0] != "bench" and not {"--device", "acme"} <= set(words)]
        if language == "" and commands:
            yield commands, [line for line in printed.splitlines() if line != ".."] if after == "text" else []


def plain(text: str) -> str:
    """Without what another machine prints otherwise: figures, widths of tables."""
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.,]*", "#", text))


@pytest.mark.usefixtures("nine")
def test_every_step_prints_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for commands, lines in steps():
        said = ""
        for words in commands:
            if words[0] == "baseline":
                subprocess.run([sys.executable, ROOT / TEXTS, "porting/documents.jsonl", "--per-file", "3"], check=True)
            ended = main(words)
            said += "".join(capfd.readouterr())
            assert ended == ENDS[words[0]], f"{shlex.join(words)}\n{said}"
        for line in lines:
            assert plain(line).strip() in plain(said), f"{commands} did not print: {line}"
