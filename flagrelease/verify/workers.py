"""`Workers`: threads that share one progress callback. Hashing and numpy release the interpreter lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class Workers:
    """Runs a function over items on `count` threads and reports bytes done, one call at a time."""

    def __init__(self, count: int, progress: Callable[[int], None] | None) -> None:
        """`progress` is called with a number of bytes, from any of the threads but never from two at once."""
        self.count = count
        self._progress = progress
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def advance(self, nbytes: int) -> None:
        """Report `nbytes` more of work."""
        if self._progress is not None:
            with self._lock:
                self._progress(nbytes)

    def each(self, work: Callable[[Item], None], items: Iterable[Item]) -> None:
        """Call `work` with every item. The first error stops what has not begun and is raised."""
        with self.begun(work, items) as finish:
            finish()

    @contextmanager
    def begun(self, work: Callable[[Item], None], items: Iterable[Item]) -> Iterator[Callable[[], None]]:
        """Call `work` with every item while the body runs; what the body gives to `each` waits for the same threads.

        What is yielded waits for the rest and raises the first error. An item that has not begun at the end is left.
        """
        outermost = self._pool is None
        pool = self._pool = self._pool or ThreadPoolExecutor(self.count)
        try:
            futures = [pool.submit(work, item) for item in items]
            try:
                yield lambda: _finish(futures)
            finally:
                for future in futures:
                    future.cancel()
        finally:
            if outermost:
                self._pool = None
                pool.shutdown()


def _finish(futures: list[Future[None]]) -> None:
    done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
    for future in waiting:
        future.cancel()
    for future in done:
        future.result()
