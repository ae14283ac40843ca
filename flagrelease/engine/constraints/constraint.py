"""A compiled constraint, and one sequence that follows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llguidance import LLMatcher

Words = NDArray[np.int32]  # a bit for each token, from the lowest bit of the first word on; set: it may be chosen


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must be.

    Attributes:
        digest: of the grammar.
        after: tokens, in their order, before which everything may be said; the grammar begins behind the last.
        must: the answer may not end before the grammar has begun.
        matcher: at the grammar's beginning; sequences take copies.
    """

    digest: str
    after: tuple[int, ...]
    must: bool
    matcher: LLMatcher = field(compare=False, repr=False)


class Follower:
    """One sequence. A token that the constraint forbids, or a step that costs more than its limit, breaks it."""

    def __init__(self, constraint: Constraint) -> None:
        """At the answer's beginning."""
        self._waits, self._must = constraint.after, constraint.must
        self._matcher = constraint.matcher.deep_copy()

    def take(self, token: int) -> None:
        """The sequence has got its next token."""
        if self._waits:
            self._waits = self._waits[1:] if token == self._waits[0] else self._waits
        else:
            self._matcher.consume_token(token)

    @property
    def broken(self) -> bool:
        """Whether the grammar was given up: its answer is not complete."""
        return self._matcher.is_error()

    def must_go_on(self, ahead: Sequence[int]) -> bool:
        """Whether the answer may not end behind `ahead`, because the grammar has not begun."""
        return self._must and bool(self._split(ahead)[0])

    def allowed(self, ahead: Sequence[int], vocabulary: int) -> Words | None:
        """The tokens that may follow `ahead`: words for a vocabulary; None if all may.

        Where the grammar is complete, or given up, that is the end token alone.
        """
        waits, consumed = self._split(ahead)
        if waits:
            return None
        known = self._matcher.try_consume_tokens(consumed) if consumed else 0
        words = np.frombuffer(self._matcher.compute_bitmask(), np.int32)
        if known:
            self._matcher.rollback(known)
        size = -(-vocabulary // 32)
        return np.pad(words[:size], (0, max(size - len(words), 0)))

    def _split(self, ahead: Sequence[int]) -> tuple[tuple[int, ...], list[int]]:
        """What is still waited for behind `ahead`, and the tokens of it that are the grammar's."""
        waits, consumed = self._waits, list[int]()
        for token in ahead:
            if not waits:
                consumed.append(token)
            elif token == waits[0]:
                waits = waits[1:]
        return waits, consumed
