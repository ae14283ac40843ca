"""`Workers`: threads that share one progress callback. Hashing and numpy release the interpreter lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")


class Workers:
    """Runs a function over items on `count` threads and reports bytes done, one call at a time."""

    def __init__(self, count: int, progress: Callable[[int], None] | None) -> None:
        """`progress` is called with a number of bytes, from any of the threads but never from two at once."""
        self.count = count
        self._progress = progress
        self._lock = threading.Lock()

    def advance(self, nbytes: int) -> None:
        """Report `nbytes` more of work."""
        if self._progress is not None:
            with self._lock:
                self._progress(nbytes)

    def each(self, work: Callable[[Item], None], items: Iterable[Item]) -> None:
        """Call `work` with every item. The first error stops what has not begun and is raised."""
        with ThreadPoolExecutor(self.count) as pool:
            futures = [pool.submit(work, item) for item in items]
            done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
            for future in waiting:
                future.cancel()
            for future in done:
                future.result()
