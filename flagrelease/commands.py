"""Which part has which commands. A start imports the part that is asked for; all of them together take a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import typer

Register = Callable[[typer.Typer], None]
ROOT_OPTIONS_WITH_A_VALUE = frozenset({"--status", "--log-file"})


def _convert(app: typer.Typer) -> None:
    from flagrelease.convert.commands import register

    register(app)


def _verify(app: typer.Typer) -> None:
    from flagrelease.publish import commands as publishing
    from flagrelease.verify.commands import register

    register(app, publishing)


def _engine(app: typer.Typer) -> None:
    from flagrelease.engine.commands import register

    register(app)


def _publish(app: typer.Typer) -> None:
    from flagrelease.publish.commands import register

    register(app)


def _diff(app: typer.Typer) -> None:
    from flagrelease.diff.commands import register

    register(app)


def _site(app: typer.Typer) -> None:
    from flagrelease.site.commands import register

    register(app)


def _run(app: typer.Typer) -> None:
    from flagrelease.run.commands import register

    register(app)


def _bench(app: typer.Typer) -> None:
    from flagrelease.bench.commands import register

    register(app)


def _validate(app: typer.Typer) -> None:
    from flagrelease.validate.commands import register

    register(app)


def _chips(app: typer.Typer) -> None:
    from flagrelease.chips.listing.commands import register

    register(app)


def _status(app: typer.Typer) -> None:
    from flagrelease.status.commands import register

    register(app)


def _doctor(app: typer.Typer) -> None:
    from flagrelease.doctor.commands import register

    register(app)


# In the order of `flagrelease --help`, which shows groups after commands.
PARTS: dict[Register, tuple[str, ...]] = {
    _convert: ("inspect", "plan", "convert"),
    _verify: ("verify",),
    _engine: ("generate", "serve", "logits"),
    _publish: ("publish", "scripts"),
    _diff: ("diff",),
    _site: ("site",),
    _run: ("run",),
    _bench: ("bench",),
    _validate: ("validate", "baseline"),
    _chips: ("chips",),
    _status: ("status",),
    _doctor: ("doctor",),
}


def asked_for(words: Iterable[str]) -> Register | None:
    """The part that has the command which `words` begin with; None if they name none, as `--help` or a misspelt one."""
    following = iter(words)
    for word in following:
        if word in ROOT_OPTIONS_WITH_A_VALUE:
            next(following, None)
        elif not word.startswith("-"):
            return next((register for register, commands in PARTS.items() if word in commands), None)
    return None
