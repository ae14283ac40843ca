"""What people see: sizes in words, tables on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from flagrelease.whole_words import WholeWords

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


def human_duration(seconds: float) -> str:
    """`0.4 s`, `42 s`, `3 min`, `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def printable(text: str) -> str:
    r"""`text` with every letter that draws nothing, or turns the line around, written as its escape (`\u202e`)."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table; a column whose name starts with `>` holds numbers and is aligned right.

    Where a terminal has no room for a word, the word is folded into the next line: nothing is cut off.
    """
    result = WholeWords(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
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


class Display:
    """How far long work is, on stderr; use it as a context. All commands show their progress through this class.

    On a terminal each piece of work has a bar with its rate and the time left; elsewhere, and if the display is never
    entered, there is a line every few seconds, for logs.
    """

    def __init__(
        self, *, quiet: bool = False, lasting: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nothing is shown yet.

        Args:
            quiet: nothing ever is, as on ranks that only hold a part of the model.
            lasting: the last line of a piece of work is printed, and stays.
            clock: seconds.
        """
        self._quiet, self._lasting, self._clock = quiet, lasting, clock
        self._bars: Progress | None = None
        self._works: dict[str, _Work] = {}

    def __enter__(self) -> Display:
        """Take the last lines of the terminal."""
        if sys.stderr.isatty() and not self._quiet:
            columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")]
            # By default rich sends what is printed on stdout to its own console, stderr, also where stdout is a file.
            redirect = sys.stdout.isatty()
            self._bars = Progress(
                *columns, TimeRemainingColumn(), console=err(), transient=True, redirect_stdout=redirect
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give them back."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __call__(self, what: str, done: int, total: int, unit: str, note: str | None = None) -> None:
        """Say that `done` of `total` units of the work `what` are done.

        Args:
            what: the name of the work.
            done: units, those of an earlier run included; these do not count for the rate.
            total: units.
            unit: "B" for bytes, which are shown as kB, MB and so on; another word is shown as it is.
            note: shown instead of units a second.
        """
        if self._quiet:
            return
        now = self._clock()
        work = self._works.get(what)
        if work is None:
            work = self._works[what] = _Work(what, unit, begun=now, first=done, said=now)
        work.done, work.total, work.note = done, total, note
        if self._bars is not None:
            self._draw(self._bars, work, now)
        if done >= total and self._lasting:
            self.finish(what)
        elif self._bars is None and now - work.said >= _PLAIN_INTERVAL:
            work.said = now
            self._print(work.line(now))

    def finish(self, what: str) -> None:
        """The work ended, wherever it was: its last line is printed, once."""
        work = self._works.get(what)
        if work is not None and not self._quiet and not work.finished:
            work.finished = True
            self._print(work.summary(self._clock()))

    def _draw(self, bars: Progress, work: _Work, now: float) -> None:
        if work.task is None:
            work.task = bars.add_task(work.what, total=work.total, completed=work.done, text="")
        bars.update(work.task, completed=work.done, total=work.total, text=work.state(now))

    def _print(self, line: str) -> None:
        if self._bars is not None:
            self._bars.console.print(line, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)


@dataclass(slots=True)
class _Work:
    what: str
    unit: str
    begun: float
    first: int
    said: float  # when the last line was printed
    done: int = 0
    total: int = 0
    note: str | None = None
    finished: bool = False
    task: TaskID | None = None

    def rate(self, now: float) -> float:
        return (self.done - self.first) / (now - self.begun) if now > self.begun else 0.0

    def pace(self, now: float) -> str:
        return f"{self.counted(self.rate(now))}/s" if self.note is None else self.note

    def counted(self, count: float) -> str:
        if self.unit == "B":
            return human_bytes(count)
        return (
            f"{count:,} {self.unit}".rstrip()
            if isinstance(count, int)
            else f"{human_number(count)} {self.unit}".rstrip()
        )

    def of(self) -> str:
        done = human_bytes(self.done) if self.unit == "B" else f"{self.done:,}"
        return f"{done} of {self.counted(self.total)}"

    def state(self, now: float) -> str:
        return f"{self.of()}, {self.pace(now)}"

    def line(self, now: float) -> str:
        rate = self.rate(now)
        left = f", {human_duration((self.total - self.done) / rate)} left" if rate > 0 else ""
        share = f"{self.done / self.total:.0%}" if self.total else "100%"
        return f"{self.what}: {self.of()} ({share}), {self.pace(now)}{left}"

    def summary(self, now: float) -> str:
        return f"{self.what}: {self.counted(self.done)} in {human_duration(now - self.begun)} ({self.pace(now)})"


class Tracker(Protocol):
    """Where work says how far it is, in bytes."""

    def to(self, done: int) -> None:
        """`done` bytes are done."""
        ...

    def add(self, count: int) -> None:
        """`count` more bytes are done."""
        ...


Counter = Callable[[str, int, int], None]  # what is counted ("headers read"), how many are done, of how many


@contextmanager
def counted(doing: str) -> Iterator[Counter]:
    """Say on stderr what is being done, then how far it is in things that are counted; their number may grow."""
    say(doing)
    with Display(lasting=False) as display:
        yield lambda what, done, total: display(what, done, total, "")


@contextmanager
def progress(what: str, total: int) -> Iterator[Tracker]:
    """A `Display` of one piece of work, counted in bytes."""
    with Display() as display:
        tracker = _Tracker(display, what, total)
        yield tracker
        tracker.to(tracker.done)
        display.finish(what)


@dataclass(slots=True)
class _Tracker:
    display: Display
    what: str
    total: int
    done: int = 0
    begun: bool = False

    def to(self, done: int) -> None:
        self.begun, self.done = True, done
        self.display(self.what, done, self.total, "B")

    def add(self, count: int) -> None:
        if not self.begun:
            self.to(0)
        self.to(self.done + count)


def saying_where_it_resumes(report: Callable[[int], None], complete: int) -> Callable[[int], None]:
    """`report`, which first says what an earlier run of the same command has written, beside `complete` releases."""
    begun = False

    def told(done: int) -> None:
        nonlocal begun
        if not begun and done > complete:
            say(f"resuming: an earlier run had written {human_bytes(done - complete)} of these files")
        begun = True
        report(done)

    return told
