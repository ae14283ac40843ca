"""Every command that README.md and docs/ show is one that the command line takes, of a program that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shell_blocks import PAGES, ROOT, Command, commands_of
from typer import Exit
from typer._click.exceptions import ClickException

from flagrelease.cli import command_line

OTHERS = {
    "make",
    "pip",
    "pytest",
    "python",
    "torchrun",
    "model_signing",
    "bash",
    "vllm",
    "sglang",
    "huggingface-cli",
    "hf",
    "modelscope",
    "curl",
    "docker",
    "kubectl",
}
COMMAND = command_line()


def parse(words: list[str]) -> str | None:
    """What the command line says against these words; None if it takes them. Nothing is run."""
    command: Any = COMMAND
    while hasattr(command, "commands"):
        place = next((place for place, word in enumerate(words) if word in command.commands), None)
        if place is None:
            return f"no such command: {' '.join(words)}"
        command, words = command.commands[words[place]], words[place + 1 :]
    try:
        command.make_context(command.name, words)
    except Exit:  # --help
        return None
    except ClickException as error:
        return error.format_message()
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_those_of_the_command_line(page: Path) -> None:
    for command in commands_of(page):
        for words in command.parts:
            assert words[0] in OTHERS | {"flagrelease"}, f"{command.text}: output and forms are blocks of `text`"
        for words in command.ours:
            assert parse(words) is None, command.text


@pytest.mark.parametrize(
    "planted",
    ["flagrelease convert --cheqpoint X", "flagrelease conwert X", "torchrun -m flagrelease generate X --prompd Y"],
)
def test_a_misspelt_command_is_seen(planted: str) -> None:
    (words,) = Command(Path("README.md"), planted, None).ours
    assert parse(words) is not None
