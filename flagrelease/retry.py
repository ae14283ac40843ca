"""The one retry policy: what passes by itself (rate limits, server errors, cut connections) is waited out.

Publishing, listings of a source, benchmark data and endpoints follow it. Only what is safe to repeat may be repeated:
where the reply may have been lost (a commit, a tag), the caller's function first looks whether the work is done.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from flagrelease.errors import NetworkError
from flagrelease.redaction import redact

Result = TypeVar("Result")

# What servers, and the proxies before them (520 to 529), say of their own state rather than of the request.
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_LONGEST_BACKOFF = 60.0


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A failure that may pass. `seconds` is how long the server asked to wait, None if it did not."""

    reason: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, and how often to try.

    Attributes:
        attempts: tries of one call; the waits double from one second to a minute, unless the server asks for another.
        longest_wait: a server that asks for more seconds is given up on. ModelScope asks for up to half an hour.
    """

    attempts: int = 8
    longest_wait: float = 1800.0
    sleep: Callable[[float], None] = field(default=time.sleep)

    def wait_out(
        self,
        what: str,
        call: Callable[[], Result],
        raised: tuple[type[Exception], ...],
        obstacle: Callable[[Exception], Obstacle | None],
    ) -> Result:
        """The result of `call`, repeated while it raises one of `raised` that `obstacle` recognises.

        Raises:
            NetworkError: it did not pass. What `obstacle` does not recognise comes through as it is.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return call()
            except raised as error:
                met = _first_obstacle(error, obstacle)
                if met is None:
                    raise
                seconds = self.seconds_after(what, attempt, met)
            print(f"{what}: {redact(met.reason)}; again in {seconds:.0f} s", file=sys.stderr, flush=True)
            self.sleep(seconds)
        raise AssertionError

    def seconds_after(self, what: str, attempt: int, met: Obstacle) -> float:
        """How long to wait after attempt number `attempt`, counted from 1, has met an obstacle.

        Raises:
            NetworkError: it was the last attempt, or the server asks for more than `longest_wait`.
        """
        seconds = min(2.0 ** (attempt - 1), _LONGEST_BACKOFF) if met.seconds is None else met.seconds
        if attempt == self.attempts or seconds > self.longest_wait:
            tried = f"tried {attempt} times" if attempt == self.attempts else f"asked to wait {seconds:.0f} s"
            raise NetworkError(f"{what}: {redact(met.reason)}; {tried}. Run the same command again to resume") from None
        return seconds


def _first_obstacle(error: BaseException | None, obstacle: Callable[[Exception], Obstacle | None]) -> Obstacle | None:
    """Clients wrap what a connection raised; the cause is what counts."""
    while isinstance(error, Exception):
        if (met := obstacle(error)) is not None:
            return met
        error = error.__cause__
    return None


def seconds_asked(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After: 30` or `RateLimit: "api";r=0;t=55` asks for; None without one that is understood."""
    after = headers.get("retry-after", "").strip()
    if after.isdecimal():
        return float(after)
    reset = re.search(r";\s*t=(\d+)", headers.get("ratelimit", ""))
    return float(reset[1]) if reset else None
