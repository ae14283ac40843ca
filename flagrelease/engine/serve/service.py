"""The scheduler in a thread of its own, and requests to it from asyncio.

At most `queue` sequences wait for a row; beyond that requests are refused at once, with a guess when to come again.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from flagrelease.engine.batch.scheduler import Request, Scheduler
from flagrelease.engine.batch.sequence import Event
from flagrelease.engine.batch.totals import Totals
from flagrelease.engine.sampling import Sampling
from flagrelease.errors import ResourceError, UsageError

_LONGEST_WAIT = 60  # seconds: what a refused caller is told at most
_STOPPED = "the engine has stopped"
_MOST_BEHIND = 4096  # tokens that a caller may lag behind, beside what the network holds
_BEHIND = f"the stream was not read for {_MOST_BEHIND} tokens"
_REMEMBERED = 16  # ends of sequences by which the time until the next one is guessed


class BusyError(ResourceError):
    """The queue is full. `retry_after`: seconds after which a place may be free."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        """`waiting`: sequences that wait for a row."""
        super().__init__(f"the queue is full: {waiting} sequences wait; try again in {retry_after} s")
        self.retry_after = retry_after


@dataclass(slots=True, eq=False)
class _Request:
    """One sequence of a caller.

    `events` is filled from the thread; a text says why nothing more comes. `drop` has the thread forget the sequence.
    """

    prompt: Sequence[int]
    sampling: Sampling
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event | str]
    drop: Callable[[_Request], None]
    key: int | None = None
    cancelled: bool = False
    ended: bool = False


Told = Sequence[tuple[_Request, Event | str]]


def _tell(told: Told) -> None:
    """From the thread: wake each event loop once for all of its callers. A loop that has ended hears nothing."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Request, Event | str]]] = {}
    for request, event in told:
        by_loop.setdefault(request.loop, []).append((request, event))
    for loop, ours in by_loop.items():
        with suppress(RuntimeError):  # the loop has ended, which can happen at any moment
            loop.call_soon_threadsafe(_hand_out, ours)


def _hand_out(told: Told) -> None:
    """In the event loop. A sequence whose caller does not keep up is given up: its events would fill the memory."""
    for request, event in told:
        if request.cancelled:
            continue
        if request.events.qsize() >= _MOST_BEHIND:
            request.cancelled, event = True, _BEHIND
            request.drop(request)
        request.events.put_nowait(event)


class Stream:
    """The events of one sequence, as they come."""

    def __init__(self, request: _Request, close: Callable[[_Request], None]) -> None:
        """`close` is called once."""
        self._request, self._close, self._closed = request, close, False

    def __aiter__(self) -> Stream:
        """Itself."""
        return self

    async def __anext__(self) -> Event:
        """The next event.

        Raises:
            ResourceError: the engine has stopped.
        """
        if self._request.ended or self._closed:
            raise StopAsyncIteration
        event = await self._request.events.get()
        if isinstance(event, str):
            raise ResourceError(event)
        self._request.ended = event.finish is not None
        return event

    def close(self) -> None:
        """Give its place to others, whether it has ended or nobody waits for the rest."""
        if not self._closed:
            self._closed = True
            self._close(self._request)


@dataclass(frozen=True, slots=True)
class Load:
    """What is going on: sequences with a row and without, requests refused so far, tokens so far."""

    running: int
    waiting: int
    refused: int
    totals: Totals


class Service:
    """Start it once; `open` may then be called by the coroutines of one event loop."""

    def __init__(self, scheduler: Scheduler, queue_limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        """The thread owns `scheduler` from `start` on. `queue_limit`: sequences that may wait for a row."""
        self._scheduler, self._limit, self._clock = scheduler, queue_limit, clock
        self._inbox: queue.Queue[_Request | None] = queue.Queue()
        self._requests: dict[int, _Request] = {}
        self._thread: Future[None] | None = None
        self._closing = threading.Lock()  # no request may come between the last look into the inbox and `_closed`
        self._closed = False
        # of the event loop alone:
        self._open, self._refused = set[_Request](), 0
        self._ends = deque[float](maxlen=_REMEMBERED)

    @property
    def alive(self) -> bool:
        """Whether requests are served."""
        return self._thread is not None and not self._thread.done() and not self._closed

    @property
    def context(self) -> int:
        """Tokens that a sequence may have."""
        return self._scheduler.runner.context

    @property
    def vocabulary(self) -> int:
        """The model's token ids end before it."""
        return self._scheduler.runner.model.config.vocab_size

    @property
    def load(self) -> Load:
        """As of now."""
        running = min(len(self._open), self._scheduler.runner.rows)
        return Load(running, len(self._open) - running, self._refused, self._scheduler.totals)

    def start(self) -> None:
        """Begin to serve."""
        self._thread = ThreadPoolExecutor(1, "engine").submit(self._run)

    def stop(self) -> None:
        """End after the current step; unfinished requests are told so.

        Raises:
            BaseException: whatever has ended the thread before.
        """
        self._inbox.put(None)
        if self._thread is not None:
            self._thread.result()

    def abandon(self, why: str) -> None:
        """From the event loop: tell everybody who waits that nothing more comes, without waiting for the thread."""
        with self._closing:
            self._closed = True
        for request in self._open:
            request.events.put_nowait(why)

    def open(self, asked: Sequence[Request]) -> list[Stream]:
        """Queue sequences, all or none; returns the events of each. The caller closes every stream.

        Raises:
            UsageError: the scheduler refuses one of them, or there are more than ever fit.
            BusyError: there is no room now.
            ResourceError: the engine has stopped.
        """
        for prompt, sampling in asked:
            self._scheduler.check(prompt, sampling)
        self._admit(len(asked))
        loop = asyncio.get_running_loop()
        requests = [_Request(prompt, sampling, loop, asyncio.Queue(), self._inbox.put) for prompt, sampling in asked]
        with self._closing:
            if self._closed:
                raise ResourceError(_STOPPED)
            for request in requests:
                self._inbox.put(request)
        self._open.update(requests)
        return [Stream(request, self._close) for request in requests]

    def _admit(self, count: int) -> None:
        room = self._scheduler.runner.rows + self._limit
        if count > room:
            raise UsageError(f"{count} sequences in one request: this server takes {room} at once")
        if len(self._open) + count > room:
            self._refused += 1
            raise BusyError(self.load.waiting, self._retry_after())

    def _retry_after(self) -> int:
        """The mean time between the last ends of sequences, in whole seconds; 1 if nothing is known yet."""
        if len(self._ends) < 2:
            return 1
        mean = (self._clock() - self._ends[0]) / len(self._ends)
        return min(max(math.ceil(mean), 1), _LONGEST_WAIT)

    def _close(self, request: _Request) -> None:
        self._open.discard(request)
        self._ends.append(self._clock())
        if not request.ended:
            request.cancelled = True
            self._inbox.put(request)

    def _run(self) -> None:
        self._scheduler.runner.model.device.set_current()
        try:
            while self._take_requests():
                events = self._scheduler.step() if self._scheduler.busy else []
                _tell([(self._requests[event.key], event) for event in events])
                for event in events:
                    if event.finish:
                        del self._requests[event.key]
        finally:  # also where the model fails: nobody may wait for it forever
            with self._closing:
                self._closed = True
                left = list(self._requests.values())
                while not self._inbox.empty():
                    request = self._inbox.get()
                    left += [] if request is None else [request]
            _tell([(request, _STOPPED) for request in left])

    def _take_requests(self) -> bool:
        """Everything in the inbox; waits for something if there is nothing else to do. False: stop."""
        while not self._inbox.empty() or not self._scheduler.busy:
            request = self._inbox.get()
            if request is None:
                return False
            if request.cancelled:
                self._forget(request)
            else:
                request.key = self._scheduler.submit(request.prompt, request.sampling)
                self._requests[request.key] = request
        return True

    def _forget(self, request: _Request) -> None:
        if request.key is not None:
            self._requests.pop(request.key, None)
            self._scheduler.cancel(request.key)
