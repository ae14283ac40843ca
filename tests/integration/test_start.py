"""What a start of the command line imports: the part that is asked for, and of it what the command uses."""

from __future__ import annotations

import pytest
import typer
from typer.core import TyperOption

from flagrelease.cli import command_line
from flagrelease.commands import PARTS, ROOT_OPTIONS_WITH_A_VALUE, asked_for


def test_the_table_has_every_command_of_every_part() -> None:
    for register, names in PARTS.items():
        assert set(command_line(register).commands) == set(names)
    assert sorted(command_line().commands) == sorted(name for names in PARTS.values() for name in names)


def test_options_of_the_root_that_take_a_value_are_known() -> None:
    valued = {
        name
        for option in command_line().params
        if isinstance(option, TyperOption) and not option.is_flag
        for name in option.opts
    }
    assert valued == ROOT_OPTIONS_WITH_A_VALUE


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("plan model --target bf16:mp8", "plan"),
        ("--status s.json plan convert", "plan"),
        ("--log-file=convert.log --status verify publish", "publish"),
        ("baseline record model", "baseline"),
        ("--help", None),
        ("--version", None),
        ("", None),
        ("convrt", None),
        ("--log-file", None),
    ],
)
def test_the_part_that_is_asked_for(words: str, command: str | None) -> None:
    part = asked_for(words.split())
    assert (part is None) == (command is None)
    assert part is None or command in PARTS[part]


def test_a_part_defines_its_commands_as_often_as_it_is_asked() -> None:
    """A group of the module must not collect its commands twice."""
    for register in PARTS:
        first, second = typer.Typer(), typer.Typer()
        register(first)
        register(second)
        counts = [
            [len(group.typer_instance.registered_commands) for group in app.registered_groups if group.typer_instance]
            for app in (first, second)
        ]
        assert counts[0] == counts[1]
