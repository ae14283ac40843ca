"""How fast a run goes and how long it will take, said on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from flagrelease.engine.serve.scheduler import Totals

_INTERVAL = 5.0  # seconds between lines


class Pace:
    """Counts answers and tokens of a run."""

    def __init__(self, answers: int, totals: Totals, clock: Callable[[], float] = time.monotonic) -> None:
        """`answers`: how many are wanted. `totals`: those of the scheduler, which grow."""
        self._answers, self._totals, self._clock = answers, totals, clock
        self._begun = self._last = clock()
        self._done = 0

    def answered(self) -> None:
        """One more is there; now and then this prints a line."""
        self._done += 1
        if self._clock() - self._last >= _INTERVAL:
            self._last = self._clock()
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """Answers, tokens a second, the time left by the answers so far, and how many drafts were right."""
        seconds = self._clock() - self._begun
        words = [f"{self._done} of {self._answers} answers", f"{self.rate:.1f} tok/s"]
        if 0 < self._done < self._answers:
            words.append(f"about {_duration(seconds / self._done * (self._answers - self._done))} left")
        if self._totals.drafted:
            words.append(f"{self._totals.accepted / self._totals.drafted:.1%} of {self._totals.drafted} drafts right")
        return ", ".join(words)

    @property
    def rate(self) -> float:
        """Generated tokens a second since the beginning."""
        seconds = self._clock() - self._begun
        return self._totals.generated / seconds if seconds else 0.0

    def summary(self) -> str:
        """At the end."""
        seconds = self._clock() - self._begun
        return f"{self.line()}; {self._totals.generated} tokens in {_duration(seconds)}"


def _duration(seconds: float) -> str:
    """`42 s`, `3 min`, `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
