"""`listen`: run the application on bound sockets until a signal comes, the engine fails, or a rank is lost."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from flagrelease.engine.serve.bind import BACKLOG
from flagrelease.engine.serve.service import Service
from flagrelease.ranks.lifetime import RANK_LOST, LostRankError

_ACCEPTED = 4  # connections that are accepted one behind the other before streams go on
_LAST_WORDS = 1  # seconds in which the streams that are cut are told so


def listen(
    app: ASGIApp,
    sockets: Sequence[socket.socket],
    service: Service,
    grace: int,
    begin: Callable[[], None],
    started: Callable[[], None],
) -> None:
    """Serve until SIGINT or SIGTERM, or until the service has failed.

    After a signal no new connections are accepted, and running answers get `grace` seconds; streams that are not done
    then end with an error event. A second Ctrl-C ends them at once.

    Args:
        app: the application.
        sockets: bound ones.
        service: what the application asks.
        grace: seconds.
        begin: is called once, when signals are heard; it lets the sockets listen.
        started: is called once, when requests are answered.

    Raises:
        LostRankError: whoever started the ranks says that one of them has died.
    """
    patience = grace + _LAST_WORDS
    config = uvicorn.Config(
        app, log_level="warning", lifespan="off", timeout_graceful_shutdown=patience, backlog=_ACCEPTED
    )
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each write to a client who has just left
    server = _Server(config, service, grace, begin, started)
    server.run(list(sockets))
    if server.lost:
        raise LostRankError


class _Server(uvicorn.Server):
    """uvicorn's, with signals that do not end the process, and ends that the streams are told about."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        grace: int,
        begin: Callable[[], None],
        started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._service, self._grace, self._begin, self._tell = service, grace, begin, started
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals: list[int] = []
        self.lost = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._begin()
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(BACKLOG)  # the loop has set it to what it accepts at once
        if self.started:
            self._tell()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or not self._service.alive

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        cut = asyncio.get_running_loop().call_later(self._grace, self._cut)
        await super().shutdown(sockets)
        cut.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal. torchrun turns a second Ctrl-C into SIGTERM; two SIGTERMs are one, sent by several senders."""
        self._signals.append(sig)
        self.should_exit = True
        self.lost = self.lost or sig == RANK_LOST
        again = len(self._signals) > 1 and signal.SIGINT in self._signals
        if (self.lost or again) and self._loop is not None:
            self.force_exit = True
            self._loop.call_soon_threadsafe(self._cut)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, this does not raise the signals again: whoever asked for an end gets exit code 0."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python lets only the main thread receive signals
            return
        heard = (signal.SIGINT, signal.SIGTERM, RANK_LOST)
        before = {number: signal.signal(number, self.handle_exit) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _cut(self) -> None:
        # A reader who takes nothing cannot be told; uvicorn cancels its response and logs that as an exception.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._service.abandon("the server has been stopped" if not self.lost else str(LostRankError()))
