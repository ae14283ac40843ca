"""`Blocks`: blocks of remote files in a bounded memory, each fetched once however many threads ask for it.

The converter reads tensors in the order of the plan, which is about the order of the files, and a thread that hashes
whole files reads in that order too. What one of them has fetched is here for the others, as in the page cache of a
machine with a disk. Whoever reads on where the last block ended finds the next ones under way.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

BLOCK_BYTES = 8 << 20  # large against a round trip; a hub serves a connection some 50 to 100 MB a second
BLOCKS_HELD = 48
_AHEAD = 6  # blocks under way behind the one that is asked for
THREADS = 16
MEMORY_BYTES = (BLOCKS_HELD + THREADS) * BLOCK_BYTES  # those on their way exist twice for a moment
_LEAD_BYTES = BLOCKS_HELD // 2 * BLOCK_BYTES
_PATIENCE_SECONDS = 2.0

Fetch = Callable[[str, int, int], bytes]  # (file, begin, count)


class Pace:
    """Keeps who hashes whole files from running ahead of those who read tensors, so that both share the blocks.

    It only saves requests: whoever waits goes on when nobody has read a tensor for a while.
    """

    def __init__(self) -> None:
        """Nobody reads yet."""
        self._changed = threading.Condition()
        self._place = 0
        self._at = float("-inf")

    def read(self, place: int) -> None:
        """Somebody reads at this byte of all files."""
        with self._changed:
            self._place, self._at = place, time.monotonic()
            self._changed.notify_all()

    def wait(self, place: int) -> None:
        """Return when `place` is not far ahead of what was read last, or nobody reads."""
        with self._changed:
            while place > self._place + _LEAD_BYTES and (left := self._at + _PATIENCE_SECONDS - time.monotonic()) > 0:
                self._changed.wait(left)


class Blocks:
    """Use as a context: at its end requests that have not begun are dropped."""

    def __init__(self, fetch: Fetch, sizes: Callable[[str], int]) -> None:
        """`fetch` reads bytes of a file; `sizes` gives the length of one."""
        self._fetch, self._sizes = fetch, sizes
        self._held: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(THREADS, "hub")

    def read(self, file: str, begin: int, out: memoryview) -> None:
        """Fill `out` with the bytes of `file` from `begin` on.

        Raises:
            NetworkError: the hub does not give them.
        """
        last = (begin + len(out) - 1) // BLOCK_BYTES
        done = 0
        while done < len(out):
            number, inside = divmod(begin + done, BLOCK_BYTES)
            block = self._block(file, number, last)
            count = min(len(out) - done, len(block) - inside)
            out[done : done + count] = block[inside : inside + count]
            done += count

    def close(self) -> None:
        """Drop what is held and what has not begun."""
        self._pool.shutdown(cancel_futures=True)
        self._held.clear()

    def _block(self, file: str, number: int, last: int) -> bytes:
        with self._lock:
            reads_on = (file, number - 1) in self._held or (file, number) in self._held
            asked = self._held.get((file, number)) or self._begin(file, number)  # held whether there is room or not
            self._held.move_to_end((file, number))
            for one in range(number + 1, max(last, number + _AHEAD if reads_on else 0) + 1):
                if one * BLOCK_BYTES >= self._sizes(file) or not self._has_room():
                    break
                if (file, one) not in self._held:
                    self._begin(file, one)
        try:
            return asked.result()
        except BaseException:
            with self._lock:  # the next who asks tries again
                self._held.pop((file, number), None)
            raise

    def _begin(self, file: str, number: int) -> Future[bytes]:
        self._has_room()
        begun = self._held[file, number] = self._pool.submit(self._get, file, number)
        return begun

    def _get(self, file: str, number: int) -> bytes:
        begin = number * BLOCK_BYTES
        return self._fetch(file, begin, min(BLOCK_BYTES, self._sizes(file) - begin))

    def _has_room(self) -> bool:
        """Whether another block may be held, after those that were asked for longest ago are forgotten."""
        while len(self._held) >= BLOCKS_HELD:
            oldest = next((key for key, future in self._held.items() if future.done()), None)
            if oldest is None:
                return False
            del self._held[oldest]
        return True
