"""The option `--ranks` of a command that runs a model: the command starts its own ranks."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Annotated

import typer

from flagrelease.device import open_device
from flagrelease.errors import ResourceError, UsageError
from flagrelease.ranks.job import ranks as ranks_of_job
from flagrelease.ranks.launch import launch
from flagrelease.ranks.status import Invocation

AUTO = "auto"
_FIRST_RANK = re.compile(r"model0-mp(\d+)(?:-part\d+)?\.safetensors")

RanksOption = Annotated[
    str,
    typer.Option(
        "--ranks",
        metavar="auto|N",
        help="Processes on this machine, each with one device and its part of the model. "
        "auto: as many as the release is cut for. Under torchrun its processes are used.",
    ),
]


def cut_for(folder: Path) -> int:
    """How many ranks a release is cut for, by the names of its files; 1 for the hf layout, or if nothing is there."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(match[1]) for name in names if (match := _FIRST_RANK.fullmatch(name))), default=1)


def choose_ranks(wanted: str, cut: int, device: str) -> int:
    """How many ranks this process has to start; 1 if it does the work itself.

    Args:
        wanted: the option's value.
        cut: ranks that the release is cut for, 1 for any.
        device: the name of the device that each rank gets one of.

    Raises:
        UsageError: not a number, or not the number that the release is cut for or that torchrun started.
        ResourceError: this machine has fewer devices.
    """
    if wanted != AUTO and not re.fullmatch("[1-9][0-9]{0,3}", wanted):
        raise UsageError(f"--ranks {wanted}: auto or a number of processes is expected")
    here = ranks_of_job()
    if here > 1:
        if wanted not in (AUTO, str(here)):
            raise UsageError(f"--ranks {wanted}: torchrun started {here} processes; leave --ranks out under torchrun")
        return 1
    count = cut if wanted == AUTO else int(wanted)
    if cut not in (1, count):
        raise UsageError(f"--ranks {wanted}: the release is cut for {cut} ranks")
    if count > 1 and importlib.util.find_spec("torch") is not None:
        try:
            open_device(device, count - 1)
        except ResourceError as error:
            raise ResourceError(
                f"{count} ranks need {count} devices of this machine ({error}); docs/run.md says how several machines "
                "are used, with torchrun"
            ) from error
    return count


def start_ranks(context: typer.Context, ranks: int, *, interactive: bool = False) -> None:
    """Run the command that `context` belongs to on `ranks` processes, and leave with the exit code that it ends with.

    Returns only for one rank, and where no command line of this program was given: this process then does the work.

    Raises:
        FlagReleaseError: what another rank than the leading one failed with first.
    """
    invocation = context.find_root().obj
    if ranks == 1 or not isinstance(invocation, Invocation):
        return
    status = launch(_own_words(invocation.words), ranks, interactive=interactive)
    if status.rank != 0 and status.message is not None:
        raise status.as_error()
    invocation.failed(status)
    raise typer.Exit(status.exit_code)


def _own_words(words: tuple[str, ...]) -> list[str]:
    """The words from the command's name on. Options before it are this process's: launch.py gives ranks their own."""
    rest = list(words)
    while rest and rest[0].startswith("-"):
        del rest[: 2 if rest[0] in ("--status", "--log-file") else 1]
    return rest
