"""`--notify`: a command of the user's that is told how a run ended."""

from __future__ import annotations

import shlex
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

    No shell is asked, so names and messages in the verdict are one word, whatever is in them.

    Returns:
        What went wrong, as a sentence; None if nothing did. A run does not fail by it.
    """
    filled = [word.replace(VERDICT, verdict) for word in words]
    try:
        done = subprocess.run(filled, input=document, stdout=2, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return f"--notify: {words[0]} did not end within {_PATIENCE} s"
    except OSError as error:
        return f"--notify: {words[0]}: {error.strerror}"
    return f"--notify: {words[0]} ended with exit code {done.returncode}" if done.returncode else None
