"""The scheduler in a thread of its own, and requests to it from asyncio."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from flagrelease.engine.sampling import Sampling
from flagrelease.engine.scheduler import Scheduler
from flagrelease.engine.sequence import Event
from flagrelease.errors import ResourceError, UsageError


@dataclass(slots=True)
class _Request:
    """One caller. `events` is filled from the thread: events, an error that refuses the request, or None: no more."""

    prompt: Sequence[int]
    sampling: Sampling
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event | UsageError | None]
    key: int | None = None
    cancelled: bool = False

    def tell(self, event: Event | UsageError | None) -> None:
        """From the thread; a caller whose loop has ended hears nothing."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Service:
    """Start it once; `stream` may then be called by any number of coroutines."""

    def __init__(self, scheduler: Scheduler) -> None:
        """The thread owns `scheduler` from `start` on."""
        self._scheduler = scheduler
        self._inbox: queue.Queue[_Request | None] = queue.Queue()
        self._requests: dict[int, _Request] = {}
        self._thread = threading.Thread(target=self._run, name="engine")
        self._closing = threading.Lock()  # no request may come between the last look into the inbox and `_closed`
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether requests are served."""
        return self._thread.is_alive() and not self._closed

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End after the current step; unfinished requests are told so."""
        self._inbox.put(None)
        self._thread.join()

    async def stream(self, prompt: Sequence[int], sampling: Sampling) -> AsyncIterator[Event]:
        """The events of one sequence. Closing the iterator early gives its place to others.

        Raises:
            UsageError: the scheduler refuses the request.
            ResourceError: the engine has stopped.
        """
        request = _Request(prompt, sampling, asyncio.get_running_loop(), asyncio.Queue())
        with self._closing:
            if self._closed:
                raise ResourceError("the engine has stopped")
            self._inbox.put(request)
        ended = False
        try:
            while not ended:
                event = await request.events.get()
                if event is None:
                    raise ResourceError("the engine has stopped")
                if isinstance(event, UsageError):
                    ended = True
                    raise event
                ended = event.finish is not None
                yield event
        finally:
            if not ended:
                request.cancelled = True
                self._inbox.put(request)

    def _run(self) -> None:
        self._scheduler.runner.model.device.set_current()
        try:
            while self._take_requests():
                for event in self._scheduler.step() if self._scheduler.busy else ():
                    request = self._requests[event.key]
                    if event.finish:
                        del self._requests[event.key]
                    request.tell(event)
        finally:  # a failure of the model is a bug that shows its traceback; nobody may wait for it forever
            with self._closing:
                self._closed = True
                while not self._inbox.empty():
                    self._refuse(self._inbox.get())
            for request in self._requests.values():
                self._refuse(request)

    def _take_requests(self) -> bool:
        """Everything in the inbox; waits for something if there is nothing else to do. False: stop."""
        while not self._inbox.empty() or not self._scheduler.busy:
            request = self._inbox.get()
            if request is None:
                return False
            if request.cancelled:
                self._forget(request)
            else:
                self._accept(request)
        return True

    def _accept(self, request: _Request) -> None:
        try:
            request.key = self._scheduler.submit(request.prompt, request.sampling)
        except UsageError as error:
            request.tell(error)
            return
        self._requests[request.key] = request

    def _refuse(self, request: _Request | None) -> None:
        if request is not None:
            request.tell(None)

    def _forget(self, request: _Request) -> None:
        if request.key is not None:
            self._requests.pop(request.key, None)
            self._scheduler.cancel(request.key)
