"""Tasks that a request of the server starts end with it: those of other prompts, and those of a caller who left."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flagrelease.engine.sampling import Sampling
from flagrelease.engine.serve.server import Answer, Asked, Served, _fill, _unless_left

SHORT = Sampling(temperature=0, max_tokens=2)


class _Stream:
    """Gives `events` and then waits, as the stream of a sequence that the engine has dropped."""

    def __init__(self, events: list[str]) -> None:
        self.events, self.closed = events, False

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> str:
        if not self.events:
            await asyncio.Event().wait()
        return self.events.pop(0)

    def close(self) -> None:
        self.closed = True


class _Answer:
    prompt = (1,)

    def add(self, event: str) -> None:
        raise LookupError(event)


def test_prompts_beside_one_that_fails_are_not_waited_for_forever() -> None:
    streams = [_Stream([]), _Stream(["planted"]), _Stream([])]
    served = cast(Served, SimpleNamespace(service=SimpleNamespace(open=lambda asked: streams)))

    async def work() -> int:
        with pytest.raises(LookupError, match="planted"):
            await _fill(served, [Asked(cast(Answer, _Answer()), SHORT)] * 3)
        return len(asyncio.all_tasks())

    assert asyncio.run(work()) == 1
    assert all(stream.closed for stream in streams)


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
