"""`--speculate auto`: whether drafting pays, by the tokens a second that steps with and without drafts gave."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from statistics import fmean, median

from flagrelease.engine.batch.acceptance import NO_DRAFTS, Acceptance

TRIAL = 16  # steps that are timed before a kind of step is judged
TERM = 512  # steps after which the kind that gave less is tried again
_REMEMBERED = 64  # steps whose acceptance counts


class Worth:
    """A step with drafts takes longer and brings more tokens. Where it takes more than it brings, it is not made.

    At each batch size (by powers of two) TRIAL steps without drafts are timed, then TRIAL with them. The break-even is
    what the one kind takes, in units of the other: so many tokens a verification must bring. As long as the mean of the
    last steps is above it, drafts are made; when it falls below, they pause, and are tried again after TERM steps. The
    kind in use is compared with an old time of the other, so that one is timed again after TERM steps, too.

    Only times of steps that read no prompt count: reading takes the same time with drafts and without. So where prompts
    are always being read, nothing becomes known and nothing is drafted. What is known of one answer holds for the next.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is known yet. `clock`: in seconds."""
        self._clock = clock
        self._seconds = defaultdict[tuple[int, bool], deque[float]](lambda: deque(maxlen=TRIAL))
        self._left = defaultdict[int, int](lambda: TERM)
        self._drafted = dict[int, bool]()  # by batch size, what was decided last
        self._means = deque[float](maxlen=_REMEMBERED)
        self._counted = NO_DRAFTS
        self._before: tuple[int, bool, float] | None = None

    def wants(self, rows: int) -> bool:
        """Whether the next step of `rows` sequences is to have drafts."""
        size = _size(rows)
        for drafting in (False, True):
            if len(self._seconds[size, drafting]) < TRIAL:
                return drafting
        pays = fmean(self._means or [1.0]) > self.break_even(rows)
        if pays != self._drafted.get(size):
            self._drafted[size], self._left[size] = pays, TERM
        if self._left[size] <= 0:
            self._left[size] = TERM
            self._seconds[size, not pays].clear()
            return not pays
        return pays

    def break_even(self, rows: int) -> float:
        """Tokens that a verification must bring to pay; both kinds of steps of so many rows must have been timed."""
        size = _size(rows)
        return median(self._seconds[size, True]) / median(self._seconds[size, False])

    def note(self, rows: int, counted: Acceptance, *, drafting: bool, calm: bool) -> None:
        """A step has ended.

        Args:
            rows: sequences that it gave tokens to.
            counted: of all drafts so far.
            drafting: whether drafts were verified and made in it.
            calm: whether nothing else was done in it: no prompt read, no change between the kinds.
        """
        size, now = _size(rows), self._clock()
        since, self._counted = counted - self._counted, counted
        if (mean := since.tokens_per_verification) is not None:
            self._means.append(mean)
        if not calm or rows == 0:
            self._before = None
            return
        if self._before is not None and self._before[:2] == (size, drafting):
            self._seconds[size, drafting].append(now - self._before[2])
            self._left[size] -= 1
        self._before = size, drafting, now


def _size(rows: int) -> int:
    """The power of two that is not below `rows`."""
    return 1 << max(rows - 1, 0).bit_length()
