"""Stop strings: a text that grows is said up to the first of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import lru_cache


class StopWatch:
    """Text in, the same text out up to a stop string, with nothing said that a stop string may begin with.

    The stop string that counts is the one that is complete first, and the longest of those that are complete at the
    same character. So the answer does not depend on the pieces in which the text comes.

    Each character of the text is looked at once, however many stop strings there are and however they repeat.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """No text has come yet."""
        self._automaton, self._node, self._held = _automaton(tuple(stops)), 0, ""
        self.stopped_by: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self.stopped_by is not None

    def push(self, text: str) -> str:
        """What can be said now. After a stop string nothing can; `stopped_by` is that string."""
        if self.stopped:
            return ""
        automaton, node = self._automaton, self._node
        if node == 0 and automaton.first.isdisjoint(text):
            return text
        for place, character in enumerate(text):
            node = automaton.follow(node, character)
            if (length := automaton.ends[node]) > 0:
                whole = self._held + text[: place + 1]
                self.stopped_by, self._held = whole[-length:], ""
                return whole[:-length]
        whole, self._node = self._held + text, node
        cut = len(whole) - automaton.depth[node]
        self._held = whole[cut:]
        return whole[:cut]

    def rest(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held, self._node = self._held, "", 0
        return held


class _Automaton:
    """Aho and Corasick's: a node for every beginning of a stop string, which is the longest one that the text ends in.

    `depth` is a node's length, and `ends` that of the longest stop string in which its beginning ends, or 0.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.first = {stop[0] for stop in stops}
        self._next: list[dict[str, int]] = [{}]
        self._shorter, self.depth, self.ends = [0], [0], [0]
        for stop in stops:
            node = 0
            for character in stop:
                node = self._next[node].get(character) or self._grow(node, character)
            self.ends[node] = len(stop)
        self._link()

    def _grow(self, node: int, character: str) -> int:
        self._next[node][character] = len(self._next)
        self._next.append({})
        self._shorter.append(0)
        self.depth.append(self.depth[node] + 1)
        self.ends.append(0)
        return len(self._next) - 1

    def _link(self) -> None:
        """Find each node's longest other beginning that it ends in, the short nodes first."""
        left = deque(self._next[0].values())
        while left:
            node = left.popleft()
            for character, longer in self._next[node].items():
                self._shorter[longer] = self.follow(self._shorter[node], character)
                self.ends[longer] = self.ends[longer] or self.ends[self._shorter[longer]]
                left.append(longer)

    def follow(self, node: int, character: str) -> int:
        """The node after one more character. Every step back was paid for by a step forward."""
        while (found := self._next[node].get(character)) is None:
            if node == 0:
                return 0
            node = self._shorter[node]
        return found


@lru_cache(maxsize=32)
def _automaton(stops: tuple[str, ...]) -> _Automaton:
    """The choices of a request, which may be many, share one."""
    return _Automaton(stops)
