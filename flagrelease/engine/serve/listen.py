"""`listen`: run the application on an address until a signal comes, and say when it answers."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

_NOT_STARTED = 3  # uvicorn's own exit code, after it has logged why


def listen(app: ASGIApp, host: str, port: int, grace: int, started: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        app: the application.
        host: address to listen on.
        port: port to listen on.
        grace: seconds that running answers get at the end.
        started: is called once, when requests are accepted.
    """
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=grace)
    server = _Server(config, started)
    try:
        server.run()
    except KeyboardInterrupt:  # uvicorn sends the signal again when it has served what was running
        return
    if not server.started:
        sys.exit(_NOT_STARTED)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tell()
