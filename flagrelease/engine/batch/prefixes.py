"""Beginnings of prompts that come again: the ranks keep what a row remembers of them, so that they are read once.

What a row remembers can be kept at the end of a pass only. So prompts are cut at multiples of a chunk, the borders, and
a beginning ends at one. It is kept when it is asked for the second time: most prompts never come again.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from flagrelease.engine.batch.orders import Load, Save
from flagrelease.engine.batch.reading import Piece
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.sequence import Running

_SEEN = 1 << 16  # beginnings of which is known that somebody had them
MOST_BYTES = 2 << 30  # of what is kept, on each rank's device


class Prefixes:
    """On the leader: which beginnings were seen, and which of them the ranks keep under a name."""

    def __init__(self, runner: Runner, most_bytes: int = MOST_BYTES) -> None:
        """Nothing is kept yet. `most_bytes`: what was not used for longest goes if there would be more."""
        self._runner, self._most = runner, most_bytes
        self._seen = OrderedDict[bytes, None]()
        self._kept = OrderedDict[bytes, tuple[int, int]]()  # name and bytes; what was used last is at the end
        self._names = 0

    def begin(self, each: Running) -> int:
        """Let the row of a new sequence remember the longest beginning that is kept; returns its tokens.

        Nothing is taken where the prompt's own scores are wanted: they need the logits of every token.
        """
        borders = self._borders(each.prompt)
        again = [border for border, digest in borders.items() if digest in self._seen and digest not in self._kept]
        each.keep_at, each.borders = max(again, default=0), borders
        for digest in borders.values():
            self._seen[digest] = None
            self._seen.move_to_end(digest)
        while len(self._seen) > _SEEN:
            self._seen.popitem(last=False)
        kept = [border for border, digest in borders.items() if digest in self._kept]
        if not kept or each.sampling.prompt_scores is not None:
            return 0
        digest = borders[max(kept)]
        self._kept.move_to_end(digest)
        self._runner.remember(Load(each.row, self._kept[digest][0]))
        each.read = each.cached = max(kept)
        return each.cached

    def keep(self, piece: Piece) -> None:
        """Behind a piece: keep what its row remembers, if another prompt has begun with all of it."""
        if piece.past != piece.each.keep_at or piece.each.borders[piece.past] in self._kept:
            return
        size = self._runner.saved_bytes(piece.past)
        if size > self._most or not self._runner.has_room(size):
            return
        dropped: list[int] = []
        while sum(each for _, each in self._kept.values()) + size > self._most:
            dropped.append(self._kept.popitem(last=False)[1][0])
        self._names += 1
        self._kept[piece.each.borders[piece.past]] = self._names, size
        self._runner.remember(Save(piece.each.row, self._names, tuple(dropped)))

    def _borders(self, prompt: Sequence[int]) -> dict[int, bytes]:
        """The borders before the prompt's last token, each with a digest of what comes before it.

        The stage that drafts has read one token more there, which then belongs to it.
        """
        ids, digest, found, done = array("q", prompt), hashlib.blake2b(digest_size=16), dict[int, bytes](), 0
        for border in range(self._runner.chunk, len(prompt), self._runner.chunk):
            past = border + self._runner.speculate
            digest.update(ids[done:past].tobytes())
            done, found[border] = past, digest.digest()
        return found
