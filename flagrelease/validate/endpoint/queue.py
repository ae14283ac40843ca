"""`ask_each`: many requests at once, for code that is not asynchronous itself."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from flagrelease.concurrently import end_tasks
from flagrelease.retry import Patience
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.endpoint.client import EndpointClient

A = TypeVar("A")
R = TypeVar("R")
SILENCE = 60.0


def ask_each(
    endpoint: Endpoint,
    asks: Iterable[A],
    ask: Callable[[EndpointClient, A], Coroutine[Any, Any, R]],
    patience: Patience | None = None,
    silence: float = SILENCE,
) -> Iterator[tuple[A, R]]:
    """Ask everything, `endpoint.concurrency` requests at once; each result as soon as it is there.

    After an error, or when the caller stops listening, open requests are given up.

    Args:
        ask: makes one request of one ask, for example `EndpointClient.chat`.
        patience: how often one request is sent, and how long is waited in between.
        silence: seconds without any result after which a line on stderr says what is waited for; and so on.

    Raises:
        FlagReleaseError: the first error of a request; results that were there before it come first.
    """
    client = EndpointClient(endpoint, patience)
    loop = asyncio.new_event_loop()
    waiting = iter(asks)
    running: dict[asyncio.Task[R], _Open[A]] = {}
    try:
        while True:
            for each in itertools.islice(waiting, endpoint.concurrency - len(running)):
                running[loop.create_task(ask(client, each))] = _Open(each)
            if not running:
                return
            first = asyncio.wait(running, timeout=silence, return_when=asyncio.FIRST_COMPLETED)
            done, _ = loop.run_until_complete(first)
            if not done:
                _say_waiting(client, running)
            for task in sorted(done, key=lambda task: task.exception() is not None):  # results before an error
                yield running.pop(task).ask, task.result()
    finally:
        loop.run_until_complete(_give_up(running, client))
        loop.close()


@dataclass(frozen=True, slots=True)
class _Open(Generic[A]):
    """A request that is under way: `since` when, in monotonic seconds."""

    ask: A
    since: float = field(default_factory=time.monotonic)


def _say_waiting(client: EndpointClient, running: dict[asyncio.Task[R], _Open[A]]) -> None:
    oldest = min(each.since for each in running.values())
    troubles = sorted({trouble for task in running if (trouble := client.trouble_of(task))})
    said = f"{len(running)} answers are waited for, the oldest for {time.monotonic() - oldest:.0f} s"
    print(f"{client.endpoint.shown}: {'; '.join([said, *troubles])}", file=sys.stderr, flush=True)


async def _give_up(running: Iterable[asyncio.Task[R]], client: EndpointClient) -> None:
    await end_tasks(running)
    await client.__aexit__(None, None, None)
