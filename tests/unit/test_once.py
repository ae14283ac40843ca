"""What threads share is made once, however many ask for it at the same time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from flagrelease.convert.codecs import native
from flagrelease.once import once


def test_threads_that_ask_together_share_one_result() -> None:
    together, made = Barrier(8), []

    @once
    def slow(number: int) -> list[int]:
        made.append(number)
        time.sleep(0.05)  # so that others ask meanwhile
        return [number]

    def ask(number: int) -> list[int]:
        together.wait()
        return slow(number)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(ask, [1, 2] * 4))
    assert sorted(made) == [1, 2]
    assert all(result is results[place % 2] for place, result in enumerate(results))


def test_what_failed_is_tried_again() -> None:
    tries: list[int] = []

    @once
    def second_time(number: int) -> int:
        tries.append(number)
        if len(tries) == 1:
            raise OSError("first")
        return number

    with pytest.raises(OSError, match="first"):
        second_time(5)
    assert second_time(5) == second_time(5) == 5
    assert tries == [5, 5]


def test_a_loop_is_compiled_by_one_of_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the workers of a conversion begin: each compiled it for itself."""
    together, compiled = Barrier(6), []
    engine = native._engine
    monkeypatch.setattr(native, "_engine", lambda text: compiled.append(text) or engine(text))

    def ask() -> native.Loop:
        together.wait()
        return native.compiled(8, 16, 31, True)  # a width that no format has, so no test before had it compiled

    with ThreadPoolExecutor(6) as pool:
        loops = [one.result() for one in [pool.submit(ask) for _ in range(6)]]
    assert len(compiled) == 1
    assert len({id(loop) for loop in loops}) == 1
