"""Commands of this program that `run` starts on several ranks of this machine."""

from __future__ import annotations

import signal

from flagrelease.errors import FlagReleaseError, VerificationError
from flagrelease.ranks.launch import launch
from flagrelease.run.request import RunRequest
from flagrelease.run.steps import CANNOT_TELL

_INTERRUPTED = 130  # exit code of any command


def run_on_ranks(ranks: int, words: list[str]) -> None:
    """Run a command of this program on ranks of this machine. What it says goes to stderr.

    Raises:
        FlagReleaseError: the command's own refusal, with its exit code. A verdict is none: it is in the report.
        KeyboardInterrupt: the command was interrupted.
    """
    status = launch(words, ranks, to_stderr=True)
    if status.message is not None:
        raise status.as_error()
    if status.exit_code in (_INTERRUPTED, 128 + signal.SIGTERM):
        raise KeyboardInterrupt
    if status.exit_code not in (0, VerificationError.exit_code, CANNOT_TELL):
        raise FlagReleaseError(f"`flagrelease {words[0]}` ended with exit code {status.exit_code}; see above")


def shared_options(request: RunRequest) -> list[str]:
    """The options that `baseline record` and `validate` both take."""
    words = ["--recipe", str(request.path), "--device", request.device, "--operators", request.operators]
    return words + [
        word for name, paths in request.data.items() for path in paths for word in ("--data", f"{name}={path}")
    ]
