"""The command line of the benchmarks, `flagrelease bench ...`. torch is imported when one of them runs."""

from __future__ import annotations

import typer

group = typer.Typer(help="Measure a machine: the engine, its operators, a server.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    app.add_typer(group, name="bench")
