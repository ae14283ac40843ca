"""`--notify`: a command of the user's that is told how a run ended."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess

from flagrelease.errors import UsageError

VERDICT = "{verdict}"
_PATIENCE = 60  # seconds


def split_command(command: str) -> list[str]:
    """The words of the command; no shell reads them.

    Raises:
        UsageError: it is empty, or a quote is not closed.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--notify {command}: {error}") from error
    if not words:
        raise UsageError("--notify: name a command")
    return words


def notify(words: list[str], document: bytes, verdict: str) -> str | None:
    """Run the command with the record of the run on its standard input, and the verdict in words for `{verdict}`.

    No shell is asked, so names and messages in the verdict are one word, whatever is in them. What takes too long is
    killed, with whatever it started.

    Returns:
        What went wrong, as a sentence; None if nothing did. A run does not fail by it.
    """
    filled = [word.replace(VERDICT, verdict) for word in words]
    try:
        process = subprocess.Popen(filled, stdin=subprocess.PIPE, stdout=2, start_new_session=True)
    except OSError as error:
        return f"--notify: {words[0]}: {error.strerror}"
    try:
        process.communicate(document, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"--notify: {words[0]} did not end within {_PATIENCE} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return f"--notify: {words[0]} ended with exit code {process.returncode}" if process.returncode else None
