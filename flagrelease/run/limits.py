"""Limits of a run, as they are written on the command line, and the one on time, which ends it as Ctrl-C would."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from flagrelease.errors import UsageError
from flagrelease.records.convert_spec import parse_bytes

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGAIN = 60.0  # seconds until a run that did not end is asked again


def parse_time(text: str) -> float:
    """Seconds, of `90m`, `6h`, `2h30m` or `45s`.

    Raises:
        UsageError: it is not written so.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or seconds <= 0:
        raise UsageError(f"--time-limit {text}: write a time as 45s, 90m, 6h or 2h30m")
    return seconds


def parse_size(text: str) -> int:
    """Bytes, of `800 GB` or `2TiB`.

    Raises:
        UsageError: it is not written so.
    """
    size = parse_bytes(text)
    if not isinstance(size, int) or size <= 0:
        raise UsageError(f"--disk-limit {text}: write a size as 800GB or 2TiB")
    return size


@dataclass(slots=True)
class TimeLimit:
    """Whether a limit on time was reached."""

    reached: bool = False


@contextmanager
def time_limit(seconds: float | None) -> Iterator[TimeLimit]:
    """Interrupt the work inside after so many seconds, as Ctrl-C does: whatever it is doing, it can be resumed.

    Everything that a run starts knows what to do at SIGINT: ranks are ended, whole files are written whole. So the
    clock's signal is passed on as that one. `reached` of the limit tells the two apart.
    """
    limit = TimeLimit()
    if seconds is None:
        yield limit
        return

    # A shell starts so what it puts into the background. Ranks inherit it: to pass the signal on to them does nothing.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    def ring(number: int, frame: FrameType | None) -> None:
        limit.reached = True
        if ignored:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    earlier = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield limit
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
        signal.setitimer(signal.ITIMER_REAL, left, interval)
