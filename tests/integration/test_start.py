"""What a start of the command line imports: the part that is asked for, and of it what the command uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperOption

from flagrelease.cli import command_line
from flagrelease.commands import PARTS, ROOT_OPTIONS_WITH_A_VALUE, asked_for

TINY = Path(__file__).parents[2] / "examples" / "tiny" / "flagrelease-tiny-v4"
# What a conversion to a named target has no use for: each takes hundredths of a second of every start, or seconds.
UNUSED = (
    "asyncio", "jinja2", "numba", "packaging", "torch", "triton", "yaml",
    "flagrelease.chips", "flagrelease.convert.disk.conversion", "flagrelease.convert.sharing.driver",
    "flagrelease.convert.summary", "flagrelease.engine", "flagrelease.publish.staging", "flagrelease.records.recipe",
    "flagrelease.records.report", "flagrelease.run", "flagrelease.source.hub.files", "flagrelease.validate",
    "flagrelease.verify",
)  # fmt: skip


def loaded(words: list[str]) -> set[str]:
    """The modules that a process has imported after this command."""
    code = (
        "import sys; from flagrelease.cli import main; code = main(sys.argv[1:]); print(*sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def unused(modules: set[str]) -> set[str]:
    return {name for name in modules for part in UNUSED if name == part or name.startswith(f"{part}.")}


def test_a_conversion_imports_only_what_it_uses(tmp_path: Path) -> None:
    found = loaded(["convert", str(TINY), "--target", "bf16:mp2", "--out", str(tmp_path)])
    assert "flagrelease.convert.running.conversion" in found
    assert not unused(found)
    assert unused(found | {"numba.core", "flagrelease.chips.table"}) == {"numba.core", "flagrelease.chips.table"}


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
