"""Large bodies are parsed and checked in processes of their own: threads would share the interpreter's lock.

16 MiB of small objects take seconds, in which the server's own process could neither run a step nor send a token.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import queue
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import SimpleNamespace
from typing import Any, cast

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from flagrelease.engine.serve.requests.refusals import BadBody, read_json
from flagrelease.engine.serve.served import Served
from flagrelease.errors import ResourceError
from flagrelease.ranks.lifetime import die_with

_PROCESSES = 2  # a body that takes long does not keep all others waiting
_NICENESS = 10  # steps of the model come first where cores are few
Read = tuple[str, Any]  # "value", "invalid" or "bad", and what belongs to it


class _Process:
    """A process that reads bodies one by one, on behalf of one thread here. It is replaced when it dies."""

    def __init__(self) -> None:
        self._process, self._line = _start()
        self._wanted = True

    def read(self, path: str, raw: bytes) -> Read:
        """Raises ResourceError if the process dies."""
        try:
            self._line.send((path, raw))
            found: Read = self._line.recv()
        except (EOFError, OSError) as error:
            self._end()
            if self._wanted:
                self._process, self._line = _start()
            raise ResourceError("the process that read the body has died; try again") from error
        return found

    def stop(self) -> None:
        """End it, whatever it does."""
        self._wanted = False
        self._process.kill()  # whoever waits for it hears that, and closes the line

    def _end(self) -> None:
        self._process.kill()
        self._process.join()
        self._line.close()


class LargeBodies:
    """Implements `refusals.BodyReader`."""

    def __init__(self) -> None:
        """The processes start by themselves, which takes some seconds; a body that comes earlier waits for them."""
        self._processes = [_Process() for _ in range(_PROCESSES)]
        self._free: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for process in self._processes:
            self._free.put(process)
        self._threads = ThreadPoolExecutor(_PROCESSES, "large bodies")

    async def read(self, path: str, raw: bytes) -> Any:
        """The checked value of a body for the route `path`.

        Raises:
            BadBody: it is no JSON that is taken.
            RequestValidationError: it is not what the route takes.
            ResourceError: the process that read it has died.
        """
        kind, found = await asyncio.get_running_loop().run_in_executor(self._threads, self._read, path, raw)
        if kind == "bad":
            raise BadBody(*found)
        if kind == "invalid":
            problem, body = found
            raise RequestValidationError([problem], body=body)
        return found

    def _read(self, path: str, raw: bytes) -> Read:
        process = self._free.get()  # there are as many as threads
        try:
            return process.read(path, raw)
        finally:
            self._free.put(process)

    def stop(self) -> None:
        """End the processes. What they were reading is refused."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.stop()


def _start() -> tuple[SpawnProcess, Connection]:
    """A process that no signal for the server's group ends; it ends with the server."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_work, args=(there, os.getpid()), daemon=True)
    resource_tracker.ensure_running()  # else the first `start` does it, and unblocks both signals (Python 3.11)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # the process inherits it
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    there.close()
    return process, here


# What follows runs in those processes.

_known: dict[str, APIRoute] = {}


def _work(line: Connection, server: int) -> None:
    die_with(server)
    os.nice(_NICENESS)
    _routes()
    while True:
        line.send(_read(*line.recv()))


def _routes() -> None:
    """Make the application's routes, which know what they take."""
    from flagrelease.engine.serve.server import make_app

    service = SimpleNamespace(context=0)  # nothing is asked here
    app = make_app(cast(Served, SimpleNamespace(service=service, name="", tokenizer=None)))
    _known.update({route.path: route for route in app.routes if isinstance(route, APIRoute) and route.body_field})


def _read(path: str, raw: bytes) -> Read:
    field = _known[path].body_field
    assert field is not None, "only routes with a body are kept"
    try:
        body = read_json(raw)
    except BadBody as error:
        return "bad", (error.detail, error.param, error.status_code)
    value, problems = field.validate(body, loc=("body",))
    if problems:
        problem = {key: problems[0][key] for key in ("type", "loc", "msg")}
        return "invalid", (problem, along(body, problem["loc"][1:]))
    return "value", value


def along(body: Any, place: Sequence[str | int]) -> Any:
    """What `body` has along `place` and nothing else: enough to tell the path of a parameter."""
    if not place:
        return None
    step, rest = place[0], place[1:]
    if isinstance(step, int):
        if not isinstance(body, list):
            return None
        return [None] * step + [along(body[step], rest)] if step < len(body) else []
    if isinstance(body, dict) and (step in body or not rest):
        return {step: along(body[step], rest)} if step in body else {}
    return along(body, rest)  # the name of a member of a union
