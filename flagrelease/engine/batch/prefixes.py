"""Beginnings of prompts that come again: the ranks keep what a row remembers of them, so that they are read once.

What a row remembers can be kept at the end of a pass only. So prompts are cut at multiples of a chunk, the borders, and
a beginning ends at one. It is kept when it is asked for the second time: most prompts never come again.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

_SEEN = 1 << 16  # beginnings of which is known that somebody had them
MOST_BYTES = 2 << 30  # on each rank's device


class Prefixes:
    """On the leader: which beginnings were seen, and under which names the ranks keep some of them."""

    def __init__(self, chunk: int, ahead: int, most_bytes: int = MOST_BYTES) -> None:
        """`chunk`: tokens between borders. `ahead`: tokens behind a border on which what is kept there depends too."""
        self._chunk, self._ahead, self._most = chunk, ahead, most_bytes
        self._seen = OrderedDict[bytes, None]()
        self._kept = OrderedDict[bytes, tuple[int, int]]()  # name and bytes, the one that was used last at the end
        self._names = 0

    def borders(self, prompt: Sequence[int]) -> dict[int, bytes]:
        """The borders before the prompt's last token, each with a digest of what comes before it."""
        ids, digest, found, done = array("q", prompt), hashlib.blake2b(digest_size=16), dict[int, bytes](), 0
        for border in range(self._chunk, len(prompt), self._chunk):
            past = border + self._ahead
            digest.update(ids[done:past].tobytes())
            done, found[border] = past, digest.digest()
        return found

    def find(self, borders: dict[int, bytes]) -> tuple[int, int]:
        """The longest of the beginnings that is kept: its length and its name; (0, -1) if there is none."""
        for border in sorted(borders, reverse=True):
            if borders[border] in self._kept:
                self._kept.move_to_end(borders[border])
                return border, self._kept[borders[border]][0]
        return 0, -1

    def note(self, borders: dict[int, bytes]) -> int:
        """Somebody has these; returns the longest that somebody had before and that is not kept, 0 if there is none."""
        again = [border for border, digest in borders.items() if digest in self._seen and digest not in self._kept]
        for digest in borders.values():
            self._seen[digest] = None
            self._seen.move_to_end(digest)
        while len(self._seen) > _SEEN:
            self._seen.popitem(last=False)
        return max(again, default=0)

    def has_room(self, size: int) -> bool:
        """Whether one of so many bytes may be kept, if others go."""
        return size <= self._most

    def keep(self, digest: bytes, size: int) -> tuple[int, list[int]]:
        """Give a name to a beginning of which a row's copy has `size` bytes; also returns the names that go for it."""
        if digest in self._kept:
            return self._kept[digest][0], []
        self._names += 1
        self._kept[digest] = self._names, size
        dropped: list[int] = []
        while sum(each for _, each in self._kept.values()) > self._most:
            dropped.append(self._kept.popitem(last=False)[1][0])
        return self._names, dropped
