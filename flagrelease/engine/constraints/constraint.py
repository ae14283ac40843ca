"""A compiled constraint, and one sequence that follows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

Words = NDArray[np.int32]  # a bit for each token, from the lowest bit of the first word on; set: it may be chosen


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must be.

    Attributes:
        digest: of the grammar.
        after: tokens, in their order, before which everything may be said; the grammar begins behind the last.
        must: the answer may not end before the grammar has begun.
        matcher: at the grammar's beginning; sequences take copies.
        threads: that make the masks of a step.
        tokens: that the tokenizer has.
    """

    digest: str
    after: tuple[int, ...]
    must: bool
    matcher: LLMatcher = field(compare=False, repr=False)
    threads: LLExecutor = field(compare=False, repr=False)
    tokens: int


class Follower:
    """One sequence. A token that the constraint forbids, or a step that costs more than its limit, breaks it."""

    def __init__(self, constraint: Constraint) -> None:
        """At the answer's beginning."""
        self.constraint, self._waits = constraint, constraint.after
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
        return self.constraint.must and bool(self._split(ahead)[0])

    def ready(self, ahead: Sequence[int]) -> tuple[LLMatcher, int] | None:
        """The matcher behind `ahead`, and how many tokens it is to forget again; None if all tokens may follow."""
        waits, consumed = self._split(ahead)
        if waits:
            return None
        return self._matcher, self._matcher.try_consume_tokens(consumed) if consumed else 0

    def _split(self, ahead: Sequence[int]) -> tuple[tuple[int, ...], list[int]]:
        """What is still waited for behind `ahead`, and the tokens of it that are the grammar's."""
        waits, consumed = self._waits, list[int]()
        for token in ahead:
            if not waits:
                consumed.append(token)
            elif token == waits[0]:
                waits = waits[1:]
        return waits, consumed


def masks(places: Sequence[tuple[Follower, Sequence[int]]], vocabulary: int) -> list[Words | None]:
    """The tokens that may follow at each place, behind its draft: words for a vocabulary; None if all may.

    Where a grammar is complete, or given up, that is the end token alone. Masks are made in parallel, those behind a
    draft after the others: one sequence has both.
    """
    found: list[Words | None] = [None] * len(places)
    for length in sorted({len(ahead) for _, ahead in places}):
        ready = [(n, each.ready(ahead)) for n, (each, ahead) in enumerate(places) if len(ahead) == length]
        asked = [(n, *matcher) for n, matcher in ready if matcher is not None]
        if not asked:
            continue
        constraint = places[asked[0][0]][0].constraint
        words = np.zeros((len(asked), -(-vocabulary // 32)), np.int32)
        known = np.zeros((len(asked), -(-constraint.tokens // 32)), np.int32)
        wanted = [(matcher, row) for row, (_, matcher, _) in enumerate(asked)]
        constraint.threads.unsafe_compute_mask_ptr(wanted, known.ctypes.data, known.strides[0], len(known))
        width = min(words.shape[1], known.shape[1])
        words[:, :width] = known[:, :width]
        for row, (n, matcher, forget) in enumerate(asked):
            matcher.rollback(forget)
            found[n] = words[row]
    return found
