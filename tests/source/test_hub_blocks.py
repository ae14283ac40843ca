"""Blocks of remote files: right whoever reads in whatever order, each fetched once, and no more held than said."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from flagrelease.errors import NetworkError
from flagrelease.source.hub import blocks as module
from flagrelease.source.hub.blocks import Blocks

FILES = {name: random.Random(name).randbytes(size) for name, size in (("a", 999), ("b", 16), ("c", 5000))}


class Remote:
    """Serves `FILES`, and counts."""

    def __init__(self, failing: int = 0) -> None:
        self.fetched: list[tuple[str, int]] = []
        self._failing, self._lock = failing, threading.Lock()

    def fetch(self, file: str, begin: int, count: int) -> bytes:
        with self._lock:
            self.fetched.append((file, begin))
            if self._failing and begin:
                self._failing -= 1
                raise NetworkError("planted")
        return FILES[file][begin : begin + count]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 16)


def read(blocks: Blocks, file: str, begin: int, count: int) -> bytes:
    out = bytearray(count)
    blocks.read(file, begin, memoryview(out))
    return bytes(out)


def test_front_to_back_fetches_each_block_once(small: None) -> None:
    remote = Remote()
    blocks = Blocks(remote.fetch, lambda file: len(FILES[file]))
    got = b"".join(read(blocks, "c", begin, min(100, 5000 - begin)) for begin in range(0, 5000, 100))
    blocks.close()
    assert got == FILES["c"]
    assert sorted(remote.fetched) == [("c", begin) for begin in range(0, 5000, 16)]


def test_threads_in_any_order_get_their_bytes_and_memory_is_bounded(small: None) -> None:
    remote = Remote()
    blocks = Blocks(remote.fetch, lambda file: len(FILES[file]))
    most = 0

    def work(seed: int) -> None:
        nonlocal most
        rng = random.Random(seed)
        for _ in range(60):
            file = rng.choice(sorted(FILES))
            begin = rng.randrange(len(FILES[file]))
            count = rng.randint(1, min(700, len(FILES[file]) - begin))
            assert read(blocks, file, begin, count) == FILES[file][begin : begin + count]
            most = max(most, len(blocks._held))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    blocks.close()
    assert most <= module.BLOCKS_HELD + 8  # a thread that waits gets its block at any rate


def test_a_block_that_failed_is_fetched_again_by_the_next_who_asks(small: None) -> None:
    blocks = Blocks(Remote(failing=1).fetch, lambda file: len(FILES[file]))
    with pytest.raises(NetworkError, match="planted"):
        read(blocks, "c", 0, 100)
    assert read(blocks, "c", 0, 1000) == FILES["c"][:1000]
    blocks.close()
