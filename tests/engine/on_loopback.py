"""A server of ours on loopback, in a thread of the test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from flagrelease.engine.serve.service import Service


@contextmanager
def on_loopback(app: Any, service: Service | None = None) -> Iterator[str]:
    """Serve an app, and start and stop its service if one is given; gives the address, http://127.0.0.1:PORT."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # a caller may come before the server does
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        if service is not None:
            service.start()
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
            if service is not None:
                service.stop()
