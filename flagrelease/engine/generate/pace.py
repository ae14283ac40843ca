"""How fast answers come: what `generate` says of its progress."""

from __future__ import annotations

import time
from collections.abc import Callable

from flagrelease.console import Display
from flagrelease.engine.batch.totals import Totals


class Pace:
    """Counts answers and tokens of a run, and tells a display."""

    def __init__(
        self, answers: int, totals: Totals, display: Display, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`answers`: how many are wanted. `totals`: those of the scheduler, which grow."""
        self._answers, self._totals, self._display, self._clock = answers, totals, display, clock
        self._begun = clock()
        self._done = 0
        self._tell()

    def answered(self) -> None:
        """One more is there."""
        self._done += 1
        self._tell()

    def _tell(self) -> None:
        self._display("generate", self._done, self._answers, "answer" if self._answers == 1 else "answers", self.note())

    def note(self) -> str:
        """Tokens, tokens a second since the beginning, and how many drafts were right."""
        seconds = self._clock() - self._begun
        rate = self._totals.generated / seconds if seconds else 0.0
        words = [f"{self._totals.generated:,} tokens", f"{rate:.1f} tok/s"]
        drafts = self._totals.acceptance
        if drafts.drafts:
            words += [f"{drafts.right / drafts.drafts:.1%} of {drafts.drafts:,} drafts right", str(drafts)]
        return ", ".join(words)
