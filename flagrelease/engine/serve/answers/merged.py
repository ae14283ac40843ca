"""Several streams as one, in the order in which their events come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from flagrelease.concurrently import end_tasks, run_together
from flagrelease.engine.batch.sequence import Event
from flagrelease.engine.serve.service import Stream


async def merged(streams: Sequence[Stream]) -> AsyncGenerator[tuple[int, Event], None]:
    """Every event with the place of its stream in `streams`. Whoever iterates closes the streams.

    Raises:
        ResourceError: the engine has stopped.
    """
    if len(streams) == 1:  # the common case needs no task of its own
        async for event in streams[0]:
            yield 0, event
        return
    come = asyncio.Queue[tuple[int, Event] | None]()
    work = asyncio.ensure_future(run_together(_forward(n, stream, come) for n, stream in enumerate(streams)))
    work.add_done_callback(lambda _: come.put_nowait(None))
    try:
        while (item := await come.get()) is not None:
            yield item
        await work  # raises what one of the streams raised
    finally:
        await end_tasks((work,))


async def _forward(place: int, stream: Stream, come: asyncio.Queue[tuple[int, Event] | None]) -> None:
    async for event in stream:
        come.put_nowait((place, event))
