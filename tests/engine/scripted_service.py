"""A service without a model: every sequence gets the same pieces of text, after the scheduler's own checks."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import torch
from fastapi import FastAPI

from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Request, Scheduler
from flagrelease.engine.batch.sequence import Event, Finish
from flagrelease.engine.batch.totals import Totals
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.scores import TokenScore
from flagrelease.engine.serve.server import Served, make_app
from flagrelease.engine.serve.service import Load, Service, Stream
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import ResourceError
from flagrelease.model.v4.efforts import efforts_of

NAME = "scripted"
CONTEXT, VOCABULARY = 8000, 263


class ScriptedStream:
    """The events of one sequence."""

    def __init__(
        self, pieces: Sequence[str], sampling: Sampling, finish: Finish | None = "stop", stopped_by: str | None = None
    ) -> None:
        last = len(pieces) - 1
        self._events = [
            Event(1, piece, self._scores(sampling, len("".join(pieces[:n]))), n + 1, finish if n == last else None,
                  stopped_by=stopped_by if n == last else None)
            for n, piece in enumerate(pieces)
        ]  # fmt: skip
        self._stops = finish is None

    def _scores(self, sampling: Sampling, begin: int) -> tuple[TokenScore, ...]:
        if sampling.logprobs is None:
            return ()
        top = tuple((70 + n, -0.5 - n) for n in range(sampling.logprobs))
        return (TokenScore(70, -0.5, top, 1, begin, begin + 1),)

    def __aiter__(self) -> ScriptedStream:
        return self

    async def __anext__(self) -> Event:
        if not self._events and self._stops:
            raise ResourceError("the engine has stopped")
        if not self._events:
            raise StopAsyncIteration
        return self._events.pop(0)

    def close(self) -> None:
        self._events = []


class ScriptedService:
    """Answers `pieces` to all, after the checks that a service makes; keeps what it was asked.

    `finish` is why every answer ends; None: the engine stops instead.
    """

    def __init__(self, tokenizer: Tokenizer, pieces: Sequence[str] = ("Hello", " world")) -> None:
        head = SimpleNamespace(device=torch.device("cpu"))
        model = SimpleNamespace(config=SimpleNamespace(vocab_size=VOCABULARY), head=head)
        runner = cast(Runner, SimpleNamespace(context=CONTEXT, model=model, chunk=64, rows=3, speculate=False))
        self._scheduler, self.tokenizer = Scheduler(runner, tokenizer), tokenizer
        self.pieces, self.alive, self.context, self.vocabulary = pieces, True, CONTEXT, VOCABULARY
        self.finish: Finish | None = "stop"
        self.stopped_by: str | None = None
        self.load = Load(0, 0, 0, Totals())
        self.asked: list[tuple[list[int], Sampling]] = []

    def open(self, asked: Sequence[Request]) -> list[Stream]:
        for prompt, sampling in asked:
            self._scheduler.check(prompt, sampling)
        self.asked += [(list(prompt), sampling) for prompt, sampling in asked]
        how = self.finish, self.stopped_by
        return [cast(Stream, ScriptedStream(self.pieces, sampling, *how)) for _, sampling in asked]


def scripted_app(tokenizer: Tokenizer, service: ScriptedService | None = None) -> FastAPI:
    """The server's application around a scripted service."""
    return make_app(
        Served(cast(Service, service or ScriptedService(tokenizer)), tokenizer, NAME, "chat", efforts_of("0731"))
    )


def caller(app: FastAPI) -> httpx2.AsyncClient:
    """A client inside the process: an exception of the application is raised where the call is made."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://127.0.0.1")


def chat(**changes: Any) -> dict[str, Any]:
    """A chat request that is answered, but for `changes`."""
    return {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **changes}
