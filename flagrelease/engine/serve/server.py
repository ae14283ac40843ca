"""An OpenAI-compatible server: /v1/models, /v1/completions, /v1/chat/completions; /health and /metrics beside them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from flagrelease.concurrently import end_tasks, run_together
from flagrelease.engine.json_line import json_line
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.serve.answers import ChatAnswer, CompletionAnswer, usage
from flagrelease.engine.serve.metrics import exposition
from flagrelease.engine.serve.protocol import ChatRequest, CompletionRequest, GenerationRequest
from flagrelease.engine.serve.refusals import JsonRoute, ParameterError, blamed, install
from flagrelease.engine.serve.service import Service, Stream
from flagrelease.engine.text import Tokenizer
from flagrelease.model.v4.chat import Mode, encode_messages

T = TypeVar("T")
Answer = ChatAnswer | CompletionAnswer
_CLIENT_LEFT = 499  # nginx's number, for logs: nobody reads the response


@dataclass(frozen=True, slots=True)
class Served:
    """A model under its public name. `mode` is that of chats that do not say one."""

    service: Service
    tokenizer: Tokenizer
    name: str
    mode: Mode

    def check_model(self, name: str) -> None:
        """Refuse another model than this one.

        Raises:
            ParameterError: with HTTP's 404.
        """
        if name != self.name:
            raise ParameterError(
                f"model {name!r} is not here: this server has {self.name!r}", "model", "model_not_found", 404
            )


def make_app(served: Served) -> FastAPI:
    """The application; the caller starts and stops the service."""
    app = FastAPI(title="flagrelease", docs_url=None, redoc_url=None)
    app.router.route_class = JsonRoute
    install(app)
    started = int(time.time())

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if served.service.alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(exposition(served.service.load), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        card = {"id": served.name, "object": "model", "created": started, "owned_by": "flagrelease"}
        return {"object": "list", "data": [card]}

    @app.post("/v1/completions")
    async def completions(request: CompletionRequest, http: Request) -> Response:
        served.check_model(request.model)
        prompts = _prompts(request, served.tokenizer)
        sampling = request.sampling(request.logprobs, request.max_tokens, echo=request.echo)
        answers: list[Answer] = [
            CompletionAnswer(n, prompt, sampling, served.tokenizer) for n, prompt in enumerate(prompts)
        ]
        with blamed("prompt"):
            return await _respond(served, http, request, answers, sampling, "text_completion")

    @app.post("/v1/chat/completions")
    async def chat_completions(request: ChatRequest, http: Request) -> Response:
        served.check_model(request.model)
        mode = request.mode(served.mode)
        sampling = request.sampling(request.scores(), request.limit())
        with blamed("messages"):
            text = encode_messages(request.conversation, mode, request.offered_tools)
            answer = ChatAnswer(served.tokenizer.encode(text), mode, sampling, served.tokenizer)
            return await _respond(served, http, request, [answer], sampling, "chat.completion")

    return app


def _prompts(request: CompletionRequest, tokenizer: Tokenizer) -> list[list[int]]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return [tokenizer.encode(prompt)]
    tokens = [each for each in prompt if isinstance(each, int)]
    if len(tokens) == len(prompt):
        return [tokens]
    return [
        tokenizer.encode(each) if isinstance(each, str) else list(each) for each in prompt if not isinstance(each, int)
    ]


async def _respond(
    served: Served, http: Request, request: GenerationRequest, answers: list[Answer], sampling: Sampling, kind: str
) -> Response:
    frame = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
    if not request.stream:
        if await _unless_left(http, _fill(served, answers, sampling)) is None:
            return Response(status_code=_CLIENT_LEFT)
        choices = [answer.choice() for answer in answers]
        return JSONResponse({**frame, "object": kind, "choices": choices, "usage": usage(answers)})
    if len(answers) > 1:
        raise ParameterError("several prompts cannot be streamed in one request", "prompt")
    chunk = {**frame, "object": "chat.completion.chunk" if kind == "chat.completion" else kind}
    chunks = _chunks(served, answers[0], sampling, chunk, with_usage=request.wants_usage)
    first = await _unless_left(http, _next(chunks))  # a refusal must come before the status line is sent
    if first is None:
        return Response(status_code=_CLIENT_LEFT)
    return StreamingResponse(_lines(first, chunks), media_type="text/event-stream")


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


async def _fill(served: Served, answers: list[Answer], sampling: Sampling) -> bool:
    """Let the answers be written."""
    streams = served.service.open([answer.prompt for answer in answers], sampling)
    try:
        await run_together(_write(answer, stream) for answer, stream in zip(answers, streams, strict=True))
    finally:
        for stream in streams:
            stream.close()
    return True


async def _write(answer: Answer, stream: Stream) -> None:
    async for event in stream:
        answer.add(event)


async def _next(chunks: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    return await anext(chunks)


async def _chunks(
    served: Served, answer: Answer, sampling: Sampling, frame: dict[str, Any], *, with_usage: bool
) -> AsyncIterator[dict[str, Any]]:
    no_usage: dict[str, Any] = {"usage": None} if with_usage else {}
    (stream,) = served.service.open([answer.prompt], sampling)
    with closing(stream):
        async for event in stream:
            for choice in answer.add(event):
                yield {**frame, "choices": [choice], **no_usage}
    if with_usage:
        yield {**frame, "choices": [], "usage": usage([answer])}


async def _lines(first: dict[str, Any], rest: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Server-sent events."""
    show: Callable[[dict[str, Any]], str] = lambda chunk: f"data: {json_line(chunk)}\n\n"  # noqa: E731
    yield show(first)
    async for chunk in rest:
        yield show(chunk)
    yield "data: [DONE]\n\n"
