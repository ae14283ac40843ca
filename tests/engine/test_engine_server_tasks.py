"""Tasks that a request of the server starts end with it: those of other prompts, and those of a caller who left."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flagrelease.engine.sampling import Sampling
from flagrelease.engine.serve.access import TokenCount
from flagrelease.engine.serve.answering import Answering, _fill, _lines, _unless_left
from flagrelease.engine.serve.service import Service
from flagrelease.errors import ResourceError

SHORT = Sampling(temperature=0, max_tokens=2)


class _Said(str):
    """An event."""

    generated = 1
    prompt_scores = ()


class _Stream:
    """Gives `events` and then waits, as the stream of a sequence that the engine has dropped."""

    def __init__(self, events: list[str]) -> None:
        self.events, self.closed = events, False

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> str:
        if not self.events:
            await asyncio.Event().wait()
        return _Said(self.events.pop(0))

    def close(self) -> None:
        self.closed = True


class _Stopped(_Stream):
    """Gives `events`, and then the engine stops."""

    async def __anext__(self) -> str:
        if not self.events:
            raise ResourceError("the engine has stopped")
        return _Said(self.events.pop(0))


class _Answering:
    """Shows events as they are; one that is called "planted" raises."""

    def begin(self) -> list[str]:
        return []

    def add(self, n: int, event: str) -> list[str]:
        if event == "planted":
            raise LookupError(event)
        return [event]

    def end(self) -> list[str]:
        return ["the end"]

    def failed(self, message: str) -> list[str]:
        return [f"failed: {message}"]


def service_of(streams: list[_Stream]) -> Service:
    return cast(Service, SimpleNamespace(open=lambda asked: streams))


def test_prompts_beside_one_that_fails_are_not_waited_for_forever() -> None:
    streams = [_Stream([]), _Stream(["planted"]), _Stream([])]

    async def work() -> int:
        with pytest.raises(LookupError, match="planted"):
            await _fill(service_of(streams), [([1], SHORT)] * 3, cast(Answering, _Answering()), TokenCount())
        return len(asyncio.all_tasks())

    assert asyncio.run(work()) == 1
    assert all(stream.closed for stream in streams)


def test_an_engine_that_stops_in_a_stream_is_told_in_it() -> None:
    # the connection broke off without a word, as if the network had failed
    streams: list[_Stream] = [_Stopped(["one"])]

    async def work() -> list[str]:
        return [
            line
            async for line in _lines(service_of(streams), [([1], SHORT)], cast(Answering, _Answering()), TokenCount())
        ]

    assert asyncio.run(work()) == ["one", "failed: the engine has stopped"]
    assert streams[0].closed


def test_an_engine_that_stops_before_a_stream_begins_is_a_refusal() -> None:
    streams: list[_Stream] = [_Stopped([])]

    async def work() -> None:
        async for _ in _lines(service_of(streams), [([1], SHORT)], cast(Answering, _Answering()), TokenCount()):
            raise AssertionError("something was sent")

    with pytest.raises(ResourceError):
        asyncio.run(work())
    assert streams[0].closed


@pytest.mark.parametrize("leaves", [True, False])
def test_work_and_watch_have_ended_with_the_request(leaves: bool) -> None:
    ended = []

    async def receive() -> dict[str, Any]:
        if not leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def answer() -> str:
        try:
            if leaves:
                await asyncio.Event().wait()
            return "written"
        finally:
            await asyncio.sleep(0)
            ended.append("ended")

    async def work() -> tuple[str | None, list[str], int]:
        got = await _unless_left(cast(Any, SimpleNamespace(receive=receive)), answer())
        return got, list(ended), len(asyncio.all_tasks())

    assert asyncio.run(work()) == (None if leaves else "written", ["ended"], 1)
