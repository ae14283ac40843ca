"""The user's sandbox: a command that runs a Python program from its standard input, apart from everything else.

    --sandbox "docker run --rm -i --network none --memory 1g python:3.12-slim python -"
    --sandbox "bwrap --ro-bind /usr /usr --symlink usr/lib64 /lib64 --unshare-all --die-with-parent python3 -"

What it keeps apart is its user's business: this package never runs in its own process what a model wrote, and it does
not judge how far a command keeps it off. It only sees that the command runs programs and tells where they end.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from dataclasses import dataclass

from flagrelease.errors import UsageError

_END = 83  # what a program exits with at its end: one that leaves early with 0 did not come to its tests
_PASSES, _FAILS = "assert 1 + 1 == 2", "raise SystemExit(0)"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """`command`: split as a shell would, and run without one. `seconds`: of one program, its start included."""

    command: str
    seconds: float = 30.0

    @property
    def words(self) -> list[str]:
        """The program and what it is given, one at least.

        Raises:
            UsageError: there is none, or a quotation is not closed.
        """
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise UsageError(f"--sandbox {self.command!r}: is no command ({error})") from None
        if not words:
            raise UsageError("--sandbox: names no command")
        return words

    def passes(self, program: str) -> bool:
        """Whether a program comes to its end in time.

        Raises:
            UsageError: there is no such command.
        """
        words = self.words
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise UsageError(f"--sandbox {self.command!r}: cannot be run ({type(error).__name__})") from None
        try:
            process.communicate(f"{program}\nraise SystemExit({_END})\n".encode(), timeout=self.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return False
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode == _END

    def probe(self) -> None:
        """See that it runs programs, before hours are spent on what they would be.

        Raises:
            UsageError: a sound program fails in it, or a failing one passes, as in a command that reads no program.
        """
        if not self.passes(_PASSES):
            raise UsageError(
                f"--sandbox {self.command!r}: a program of one true assertion fails in it: does the command read a "
                "Python program from its standard input, and exit with its code?"
            )
        if self.passes(_FAILS):
            raise UsageError(f"--sandbox {self.command!r}: a program that leaves before its end passes in it")
