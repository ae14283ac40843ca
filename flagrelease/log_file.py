"""`LogFile`: what a command says on stderr, also written to a file, with the time and without secrets."""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

from flagrelease.errors import UsageError
from flagrelease.redaction import redact

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
_DRAWN = re.compile(r"[━╸╺]|^\s*[⠀-⣿]")  # a bar or a spinner, which a terminal draws anew ten times a second


class LogFile(io.TextIOBase):
    """Takes the place of `sys.stderr`: passes everything on, and adds each whole line to a file.

    A line of the file is `2026-11-30T20:15:03Z rank 1: text`, the rank only where there are several. It is written at
    once, by one call that appends, so several processes may share a file. Colours, bars and spinners are left out.
    What other programs and libraries in C write to the descriptor itself is not seen here.
    """

    def __init__(self, path: Path, stderr: TextIO, rank: int | None = None) -> None:
        """Open `path` for appending.

        Raises:
            UsageError: it cannot be opened.
        """
        self.path, self._stderr, self._rest = path, stderr, ""
        self._who = "" if rank is None else f"rank {rank}: "
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise UsageError(f"--log-file {path}: cannot be written ({error.strerror})") from error

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the terminal, which decides what bars are drawn with."""
        return self._stderr.encoding

    def write(self, text: str) -> int:
        """Pass `text` on, and keep the lines that it ends."""
        written = self._stderr.write(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._keep(line)
        return written

    def flush(self) -> None:
        """Pass it on; the file has no buffer."""
        self._stderr.flush()

    def isatty(self) -> bool:
        """Whether a person sees it."""
        return self._stderr.isatty()

    def fileno(self) -> int:
        """The descriptor of stderr, for child processes."""
        return self._stderr.fileno()

    def writable(self) -> bool:
        """Yes."""
        return True

    def end(self, error: BaseException | None) -> TextIO:
        """Write what is left, and the traceback of `error`, which the caller shows; returns the stderr of before."""
        text = self._rest if error is None else "".join([self._rest, "\n", *traceback.format_exception(error)])
        for line in text.split("\n"):
            self._keep(line)
        self._rest = ""
        os.close(self._descriptor)
        return self._stderr

    def _keep(self, line: str) -> None:
        text = _CONTROL.sub("", line.rstrip("\r").rpartition("\r")[2])
        if text.strip() and not _DRAWN.search(text):
            now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            os.write(self._descriptor, f"{now} {self._who}{redact(text)}\n".encode(errors="replace"))


def current_log() -> Path | None:
    """The file that this process logs to, for the ranks that it starts."""
    return sys.stderr.path.absolute() if isinstance(sys.stderr, LogFile) else None
