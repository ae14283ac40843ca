"""What people see: sizes in words, tables on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, JustifyMethod
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

_PLAIN_INTERVAL = 5.0  # seconds between lines where there is no terminal


def out() -> Console:
    """The console for results."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=True)


def err() -> Console:
    """The console for talk."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def human_bytes(count: float) -> str:
    """Decimal units, three figures: `9.98 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 999.5 or unit == "TB":
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    raise AssertionError


def human_number(value: float) -> str:
    """Four figures, and whole numbers beyond: `0.0123`, `201.5`, `10,624`; never an exponent for what is large."""
    return f"{value:,.0f}" if abs(value) >= 999.95 else f"{value:.4g}"


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table; a column whose name starts with `>` holds numbers and is aligned right.

    Where a terminal has no room for a word, it goes on in the next line: nothing is cut off.
    """
    result = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        side: JustifyMethod = "right" if column.startswith(">") else "left"
        result.add_column(column.removeprefix(">"), justify=side, overflow="fold")
    return result


def say(text: str) -> None:
    """One line of talk on stderr."""
    print(f"flagrelease: {text}", file=sys.stderr, flush=True)


def show(as_json: bool, document: dict[str, Any], text: Callable[[], None]) -> None:
    """Print a result: as one JSON document, or as `text` prints it."""
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        text()


@contextmanager
def status(doing: str) -> Iterator[None]:
    """Say on stderr what is being done, while it takes: a spinner on a terminal, a line elsewhere."""
    if sys.stderr.isatty():
        with err().status(doing):
            yield
    else:
        say(doing)
        yield


Counter = Callable[[str, int, int], None]  # what is counted ("headers read"), how many are done, of how many


@contextmanager
def counted(doing: str) -> Iterator[Counter]:
    """Say on stderr what is being done, and how far it is in things that are counted; how many there are may turn out
    on the way. A bar on a terminal; elsewhere a line at the beginning, and one now and then.
    """
    if sys.stderr.isatty():
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=err(), transient=True
        ) as bar:
            task = bar.add_task(doing, total=None)
            yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
        return
    say(doing)
    last = time.monotonic()

    def line(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _PLAIN_INTERVAL:
            last = time.monotonic()
            say(f"{what}: {done:,} of {total:,}")

    yield line


class Tracker(Protocol):
    """Where work says how far it is, in bytes."""

    def to(self, done: int) -> None:
        """`done` bytes are done."""
        ...

    def add(self, count: int) -> None:
        """`count` more bytes are done."""
        ...


@contextmanager
def progress(what: str, total: int) -> Iterator[Tracker]:
    """A display of bytes done, rate and time left on stderr; lines now and then where that is no terminal."""
    if sys.stderr.isatty():
        with Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(), console=err(), transient=True,
        ) as bar:  # fmt: skip
            yield _Bar(bar, bar.add_task(what, total=total))
        return
    lines = _Lines(what, total)
    yield lines
    lines.finish()


class _Bar:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task

    def to(self, done: int) -> None:
        self._bar.update(self._task, completed=done)

    def add(self, count: int) -> None:
        self._bar.advance(self._task, count)


class _Lines:
    """One line every few seconds, for logs."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._begun = self._last = time.monotonic()
        self._first: int | None = None  # what an earlier run had done does not count for the rate
        self._done = 0

    def add(self, count: int) -> None:
        self.to(self._done + count)

    def to(self, done: int) -> None:
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        self._done = done
        if now - self._last >= _PLAIN_INTERVAL:
            self._last = now
            rate = (done - self._first) / (now - self._begun)
            left = f", {(self._total - done) / rate:.0f} s left" if rate > 0 else ""
            share = f"{done / self._total:.0%}" if self._total else "100%"
            self._line(f"{human_bytes(done)} of {human_bytes(self._total)} ({share}), {human_bytes(rate)}/s{left}")

    def finish(self) -> None:
        seconds = time.monotonic() - self._begun
        rate = (self._done - (self._first or 0)) / seconds if seconds else 0.0
        self._line(f"{human_bytes(self._done)} in {seconds:.1f} s ({human_bytes(rate)}/s)")

    def _line(self, text: str) -> None:
        print(f"{self._what}: {text}", file=sys.stderr, flush=True)
