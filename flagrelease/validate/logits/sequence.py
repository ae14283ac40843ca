"""Numbers that look random and are the same for ever: for texts written by rule.

Not `random`, whose methods may draw differently in another Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
_MODULUS, _FACTOR = 2**31 - 1, 48271  # Park and Miller's minimal standard generator


class Numbers:
    """A Lehmer sequence from a seed in 1 .. 2^31 - 2."""

    def __init__(self, seed: int) -> None:
        """Nothing is drawn yet."""
        self._state = seed

    def below(self, limit: int) -> int:
        """0 .. limit - 1."""
        self._state = self._state * _FACTOR % _MODULUS
        return self._state * limit // _MODULUS

    def between(self, low: int, high: int) -> int:
        """`low` .. `high`."""
        return low + self.below(high - low + 1)

    def one_of(self, choices: Sequence[T]) -> T:
        """An element."""
        return choices[self.below(len(choices))]
