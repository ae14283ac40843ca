"""The command line: its root, and the commands of the part that is asked for.

`main` is the only place that turns an error into text and an exit code.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import traceback
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer
from typer.core import TyperGroup
from typer.main import get_command

from flagrelease import __version__, console
from flagrelease.commands import PARTS, Register, asked_for
from flagrelease.errors import FlagReleaseError, ResourceError, UsageError
from flagrelease.extras import missing_extra
from flagrelease.log_file import LogFile
from flagrelease.ranks.job import is_leader, rank, ranks
from flagrelease.ranks.lifetime import LostRankError, die_with_torchrun, end_failed_rank, is_launched
from flagrelease.ranks.status import BUG, Invocation

EXIT_CODES = """\
Exit codes: 0 done; 1 a bug in flagrelease; 2 bad usage or recipe; 3 bad checkpoint; 4 something is missing (space, a
device, a package, a free port) or a folder belongs to something else; 5 verification failed; 6 network; 7 a validation
without a verdict; 8 the time limit came first; 130 interrupted (after 8 and 130, run the same command again to resume).
"""

INTERRUPTED = 130
_ISSUES = "https://github.com/flagos-ai/flagrelease/issues"


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    status: Annotated[
        Path | None,
        typer.Option(
            "--status", metavar="FILE", help="Write how the command ended (JSON). torchrun's own exit code is always 1."
        ),
    ] = None,
    log_file: Annotated[
        Path | None,
        typer.Option(
            "--log-file", metavar="FILE", help="Add what goes to stderr to this file too, with the time; also of ranks."
        ),
    ] = None,
) -> None:
    if log_file is not None:
        sys.stderr = LogFile(log_file, sys.stderr, rank() if ranks() > 1 else None)
    if status is not None and isinstance(context.obj, Invocation):
        context.obj.report_to(status)
    if version:
        print(f"flagrelease {__version__}")
        raise typer.Exit


@cache
def command_line(part: Register | None = None) -> TyperGroup:
    """The command line with all commands, or with those of one part, which is several times as quick to load."""
    app = typer.Typer(
        name="flagrelease",
        help="DeepSeek-V4 for every chip: convert, prove and publish one release per platform.",
        epilog=EXIT_CODES,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    app.callback(invoke_without_command=True)(_root)
    for register in PARTS if part is None else [part]:
        register(app)
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return group


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    invocation = Invocation(tuple(words))
    code = BUG  # unless something better is known: the traceback of an unexpected error is shown
    unexpected: BaseException | None = None
    try:
        code = _run(words, invocation)
    except BaseException as error:
        unexpected = error
        raise
    finally:
        invocation.ended(code)
        if isinstance(sys.stderr, LogFile):
            sys.stderr = sys.stderr.end(unexpected)
    return code


def _refuse_torn_completion() -> None:
    """bash says in COMP_CWORD which of COMP_WORDS is completed, and typer reads both without a check.

    Raises:
        UsageError: one is missing, or is no such number.
    """
    if os.environ.get("_FLAGRELEASE_COMPLETE") != "complete_bash":
        return
    if "COMP_WORDS" not in os.environ or not os.environ.get("COMP_CWORD", "").isdecimal():
        raise UsageError(
            "completion for bash needs COMP_WORDS, and in COMP_CWORD the number of a word, as bash sets them"
        )


def _run(words: list[str], invocation: Invocation) -> int:
    try:
        _refuse_torn_completion()
        command_line(asked_for(words)).main(words, prog_name="flagrelease", obj=invocation)
    except FlagReleaseError as error:
        return _report(error, invocation)
    except ModuleNotFoundError as error:
        refusal = missing_extra(error)
        if refusal is None:
            raise
        return _report(refusal, invocation)
    except OSError as error:  # what no command expects: a full disk, permissions, a vanished mount
        where = f"{error.filename}: " if error.filename is not None else ""
        return _report(ResourceError(f"{where}{error.strerror or error}"), invocation)
    except SystemExit as end:  # typer ends so, after bad usage too
        if end.code == INTERRUPTED and is_leader():
            console.say("interrupted. Run the same command again to resume")
        return end.code if isinstance(end.code, int) else 0
    raise AssertionError("typer returned")


def _report(error: FlagReleaseError, invocation: Invocation) -> int:
    invocation.error = error
    said = isinstance(error, LostRankError) and is_launched()  # launch.py says which rank it was
    if not said and not _said_by_another_rank(str(error)):
        if "--json" in invocation.words:
            document = {"error": {"kind": error.kind, "message": str(error), "exit_code": error.exit_code}}
            print(json.dumps(document, indent=2, ensure_ascii=False))
        console.say(f"{error.kind}: {error}")
    return error.exit_code


def _said_by_another_rank(text: str) -> bool:
    """Whether another rank of this node has printed the same error: eight copies of one sentence help nobody.

    torchrun gives each rank a folder for its error file, beside those of the other ranks, and removes them at the end.
    """
    own = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if own is None:
        return False
    mark = Path(own).parents[1] / f"said-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return True
    except OSError:  # no such folder: say it once too often rather than not at all
        return False
    return False


def _report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    traceback.print_exception(kind, error, trace)
    console.say(f"this is a bug in flagrelease. Please report the command and the lines above at {_ISSUES}")
    end_failed_rank(BUG)


def run() -> None:
    """The console script."""
    die_with_torchrun()
    # torch's threads wait for each other in a spin, which takes 20 times as long where other programs have the cores.
    # OpenMP reads this when torch is imported, which no command has done yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A plan of V4-Pro makes a million small objects, all of which it keeps. By default Python looks through them for
    # garbage every 700 new ones, which takes half of the plan's time.
    gc.set_threshold(50_000, 20, 100)
    sys.excepthook = _report_bug
    code = main()
    end_failed_rank(code)
    sys.exit(code)
