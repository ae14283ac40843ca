"""How far a validation is, on stderr: a bar with the time left, or a line now and then where that is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from flagrelease.console import err, human_bytes

_PLAIN_INTERVAL = 10.0  # seconds


class Display:
    """A `Watch` for people; use it as a context."""

    def __init__(self, *, quiet: bool = False) -> None:
        """Nothing is shown yet. `quiet`: nothing ever is, as on ranks that only hold a part of the model."""
        self._quiet = quiet
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._last = 0.0
        if sys.stderr.isatty() and not quiet:
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}")
            self._bar = Progress(*columns, TimeRemainingColumn(), console=err(), transient=True)

    def __enter__(self) -> Display:
        """Take the terminal's last line."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, what: str, done: int, total: int, unit: str) -> None:
        """As `Watch` says."""
        if self._quiet:
            return
        if self._bar is None:
            self._line(what, done, total, unit)
            return
        count = f"{_counted(done, unit)} of {_counted(total, unit)}"
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total, count=count)
        self._bar.update(self._tasks[what], completed=done, total=total, count=count)

    def _line(self, what: str, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        begun, first = self._begun.setdefault(what, (now, done))  # what an earlier run did does not count for the rate
        if now - self._last < _PLAIN_INTERVAL and done < total:
            return
        self._last = now
        rate = (done - first) / (now - begun) if now > begun else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        print(f"{what}: {_counted(done, unit)} of {_counted(total, unit)}{left}", file=sys.stderr, flush=True)


def _counted(count: int, unit: str) -> str:
    return human_bytes(count) if unit == "B" else f"{count:,} {unit}"
