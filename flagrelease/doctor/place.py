"""`Place`: the machine that is examined. Tests put a folder in place of its files and programs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PARTING = 2.0  # seconds
_NOT_STARTED = 126  # as a shell says it


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended. `code` is negative for a signal, None if it was stopped for taking too long."""

    code: int | None
    out: str
    err: str

    @property
    def ending(self) -> str:
        """In words; the last line of its stderr, if it failed by itself."""
        if self.code is None:
            return "gave no answer in time"
        if self.code < 0:
            return f"was ended by a signal ({signal.strsignal(-self.code)})"
        said = self.err.strip().splitlines()
        return said[-1] if said else f"ended with exit code {self.code}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look.

    Attributes:
        root: in place of `/`.
        packages: folders with installed distributions; None: those of this interpreter.
        environment: variables of the process.
    """

    root: Path = Path("/")
    packages: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def path(self, absolute: str) -> Path:
        """A file of the machine by its absolute path."""
        return self.root / absolute.lstrip("/")

    def program(self, name: str) -> str | None:
        """The path of a program, as a shell would find it."""
        return shutil.which(name, path=self.environment.get("PATH", os.defpath))

    def run(self, words: Sequence[str], seconds: float) -> Ran | None:
        """Run a program of the machine without input, for at most `seconds`; None if there is no such program.

        It may hang in a driver or start others: all that it started is killed when its time is over.
        """
        path = self.program(words[0])
        if path is None:
            return None
        try:
            process = subprocess.Popen(
                [path, *words[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                errors="replace", env=dict(self.environment), start_new_session=True,
            )  # fmt: skip
        except OSError as error:  # of another processor, or torn
            return Ran(_NOT_STARTED, "", f"cannot be started ({error.strerror})")
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return Ran(None, *_left(process))
        return Ran(process.returncode, out, err)

    def probe(self, script: str, words: Sequence[str], seconds: float) -> Ran:
        """Run a script of `probes/` in a Python of its own: what it imports may end the process, or hang."""
        path = Path(__file__).parent / "probes" / script
        ran = self.run([sys.executable, str(path), *words], seconds)
        assert ran is not None, "this interpreter is there"
        return ran


def _left(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a killed program had printed; nothing if something that left its group still holds the pipes."""
    try:
        return process.communicate(timeout=_PARTING)
    except subprocess.TimeoutExpired:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        process.wait()
        return "", ""
