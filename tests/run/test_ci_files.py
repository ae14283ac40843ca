"""The workflow and the GitLab template that users copy: valid by the published schemas, and their commands exist."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ci_files import GITHUB, GITLAB, Step, commands, github_steps, gitlab_steps

from flagrelease.chips.table import load_chips
from flagrelease.cli import command_line
from flagrelease.run.limits import parse_size, parse_time
from flagrelease.run.notification import split_command

VALUES = {
    "RECIPE": "flash-0731", "CHECKPOINT": "/data/DeepSeek-V4-Flash-0731", "OUT": "/data/nightly", "TARGET": "hf",
    "NOTIFY": "mail -s {verdict} team@example.org", "CHIP": "ascend", "RUNNER_TEMP": "/tmp", "SIGNING_KEY": "key.pem",
}  # fmt: skip
VALUES |= {f"FLAGRELEASE_{name}": VALUES[name] for name in ("RECIPE", "CHECKPOINT", "OUT", "TARGET", "NOTIFY")}
STEPS = {"github": list(github_steps()), "gitlab": list(gitlab_steps())}


@pytest.mark.parametrize(
    ("schema", "path", "options"),
    [
        ("vendor.github-workflows", GITHUB, []),
        ("vendor.gitlab-ci", GITLAB, ["--data-transform", "gitlab-ci"]),
    ],
)
def test_the_published_schema_takes_it(schema: str, path: object, options: list[str]) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *options, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def parse(words: list[str]) -> dict[str, object]:
    """By the real command line, without running the command."""
    group = command_line()
    with group.make_context("flagrelease", list(words)) as context:
        name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[attr-defined]
        assert command is not None, f"no command {name}"
        with command.make_context(name, rest, parent=context) as inner:
            return dict(inner.params)


@pytest.mark.parametrize("host", list(STEPS))
def test_every_command_is_one_of_this_version(host: str) -> None:
    seen: list[str] = []
    for step in STEPS[host]:
        for words in commands(step, VALUES):
            found = parse(words)
            seen.append(words[0])
            if words[0] == "run":
                parse_time(str(found["time_limit"]))
                assert found["junit"]
            for option, read in (("disk_limit", parse_size), ("notify", split_command)):
                if found.get(option) is not None:
                    read(str(found[option]))  # type: ignore[operator]
    assert seen.count("run") == 3 + 7, "to verify, native, to publish, and for each other chip"
    assert set(seen) == {"run", "doctor", "status", "site"}


def test_a_command_that_does_not_exist_is_found() -> None:
    """Of the checker."""
    for line, said in (
        ('flagrelease run "$RECIPE" --out "$OUT" --no-such-option', "No such option"),
        ("flagrelease polish x", "No such command"),
        ('flagrelease run "$RECIPE" --out "$OUT" --from polish', "polish"),
    ):
        (words,) = commands(Step("job", "step", line, {}), VALUES)
        with pytest.raises(Exception, match=said) as raised:
            parse(words)
        assert raised.type.__module__.startswith("typer")


def test_both_know_every_chip_of_the_table() -> None:
    for host, steps in STEPS.items():
        chips = {
            words[words.index("--chip") + 1]
            for step in steps
            for words in commands(step, VALUES | step.env)
            if "--chip" in words
        }
        assert chips == set(load_chips()), host
