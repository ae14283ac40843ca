"""Planning pauses Python's garbage collector, and leaves it as it found it."""

from __future__ import annotations

import gc

import pytest

from flagrelease.convert.planning.collector import paused_collector


def test_it_is_put_back_as_it_was() -> None:
    @paused_collector()
    def plan() -> None:
        assert not gc.isenabled()
        raise ValueError("planned")

    assert gc.isenabled()
    with pytest.raises(ValueError, match="planned"):
        plan()
    assert gc.isenabled()
    gc.disable()
    try:
        with paused_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_it_is_a_decorator_for_every_call() -> None:
    seen = []

    @paused_collector()
    def plan() -> None:
        seen.append(gc.isenabled())

    plan()
    plan()
    assert seen == [False, False]
