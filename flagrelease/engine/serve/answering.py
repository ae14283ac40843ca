"""How a request is carried out, whatever its interface: its sequences run, and its events become an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from flagrelease.concurrently import end_tasks
from flagrelease.engine.batch.scheduler import Request as Sequenced
from flagrelease.engine.batch.sequence import Event
from flagrelease.engine.serve.access import TokenCount, token_count
from flagrelease.engine.serve.answers.merged import merged
from flagrelease.engine.serve.answers.written import respond_with
from flagrelease.engine.serve.requests.refusals import CLIENT_LEFT
from flagrelease.engine.serve.service import Service, Stream
from flagrelease.errors import ResourceError

T = TypeVar("T")


class Answering(Protocol):
    """An interface's answer to one request, built up from the events of its sequences.

    Every method but `whole` returns server-sent events, each ended by an empty line.
    """

    def begin(self) -> list[str]:
        """What is sent before the first token."""

    def add(self, n: int, event: Event) -> list[str]:
        """Take in an event of the sequence at that place."""

    def end(self) -> list[str]:
        """What is sent behind the last event."""

    def failed(self, message: str) -> list[str]:
        """What is sent where the engine stops in the middle."""

    def whole(self) -> str | Iterator[str]:
        """The answer as one JSON document, after the last event, perhaps in pieces."""


async def respond(
    service: Service, http: Request, asked: Sequence[Sequenced], answering: Answering, *, stream: bool
) -> Response:
    """Run the sequences and answer, whole or as a stream. If the caller leaves, the sequences end.

    Raises:
        UsageError: the service refuses a sequence.
        ResourceError: there is no room, or the engine has stopped before anything was sent.
    """
    count = token_count(http.scope)
    count.prompt = sum(len(prompt) for prompt, _ in asked)
    if not stream:
        if await _unless_left(http, _fill(service, asked, answering, count)) is None:
            return Response(status_code=CLIENT_LEFT)
        return respond_with(answering.whole())
    lines = _lines(service, asked, answering, count)
    first = await _unless_left(http, _next(lines))  # a refusal must come before the status line is sent
    if first is None:
        return Response(status_code=CLIENT_LEFT)
    return StreamingResponse(_rest(first, lines), media_type="text/event-stream")


async def _unless_left(http: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Return what `work` returns, or None if the caller leaves first; `work` is then cancelled and has ended.

    The body of the request must have been read: after it, a disconnect is all that the caller can send.
    """
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(http))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await end_tasks((task, left))


async def _left(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _fill(service: Service, asked: Sequence[Sequenced], answering: Answering, count: TokenCount) -> bool:
    async with aclosing(_events(service.open(asked), count)) as events:
        async for n, event in events:
            answering.add(n, event)
    return True


async def _next(lines: AsyncIterator[str]) -> str:
    return await anext(lines)


async def _lines(
    service: Service, asked: Sequence[Sequenced], answering: Answering, count: TokenCount
) -> AsyncIterator[str]:
    """The answer as server-sent events. A failure raises as long as nothing was sent, and is an event afterwards."""
    async with aclosing(_events(service.open(asked), count)) as events:
        begun = False
        for line in answering.begin():
            begun = True
            yield line
        try:
            async for n, event in events:
                for line in answering.add(n, event):
                    begun = True
                    yield line
        except ResourceError as error:
            if not begun:
                raise
            lines = answering.failed(str(error))
        else:
            lines = answering.end()
        for line in lines:
            yield line


async def _events(streams: list[Stream], count: TokenCount) -> AsyncGenerator[tuple[int, Event], None]:
    """Every event with the place of its sequence; in the end the streams are closed. Tokens are counted in `count`."""
    generated = [0] * len(streams)
    try:
        async with aclosing(merged(streams)) as events:
            async for n, event in events:
                count.generated += event.generated - generated[n]
                generated[n] = event.generated
                yield n, event
                if event.prompt_scores:
                    await asyncio.sleep(0)  # a long prompt's come in one go
    finally:
        for stream in streams:
            stream.close()


async def _rest(first: str, lines: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for line in lines:
        yield line
