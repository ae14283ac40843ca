"""An OpenAI-compatible server: /v1/models, /v1/completions, /v1/chat/completions; /health and /metrics beside them."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse

from flagrelease.concurrently import end_tasks, run_together
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.serve.answers import ChatAnswer, CompletionAnswer, usage
from flagrelease.engine.serve.metrics import exposition
from flagrelease.engine.serve.protocol import ChatRequest, CompletionRequest, GenerationRequest
from flagrelease.engine.serve.service import BusyError, Service, Stream
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import FlagReleaseError, ResourceError, UsageError
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


def make_app(served: Served) -> FastAPI:
    """The application; the caller starts and stops the service."""
    app = FastAPI(title="flagrelease", docs_url=None, redoc_url=None)
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
        prompts = _prompts(request, served.tokenizer)
        sampling = request.sampling(request.logprobs, request.max_tokens, echo=request.echo)
        answers: list[Answer] = [
            CompletionAnswer(n, prompt, sampling, served.tokenizer) for n, prompt in enumerate(prompts)
        ]
        return await _respond(served, http, request, answers, sampling, "text_completion")

    @app.post("/v1/chat/completions")
    async def chat_completions(request: ChatRequest, http: Request) -> Response:
        mode = request.mode(served.mode)
        tools = request.tools if request.tool_choice == "auto" else []
        prompt = served.tokenizer.encode(encode_messages(request.messages, mode, tools))
        if request.top_logprobs is not None and not request.logprobs:
            raise UsageError("top_logprobs needs logprobs")
        logprobs = request.top_logprobs or 0 if request.logprobs else None
        limits = [n for n in (request.max_tokens, request.max_completion_tokens) if n is not None]
        sampling = request.sampling(logprobs, min(limits, default=None))
        answer = ChatAnswer(prompt, mode, sampling, served.tokenizer)
        return await _respond(served, http, request, [answer], sampling, "chat.completion")

    @app.exception_handler(FlagReleaseError)
    async def refuse(_: Request, error: FlagReleaseError) -> JSONResponse:
        if isinstance(error, BusyError):
            return _error(429, str(error), {"Retry-After": str(error.retry_after)})
        return _error(503 if isinstance(error, ResourceError) else 400, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _error(400, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")

    return app


def _prompts(request: CompletionRequest, tokenizer: Tokenizer) -> list[list[int]]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return [tokenizer.encode(prompt)]
    if not prompt:
        raise UsageError("an empty list of prompts")
    whole = [each for each in prompt if isinstance(each, int)]
    if whole:
        return [whole]
    return [
        tokenizer.encode(each) if isinstance(each, str) else list(each) for each in prompt if not isinstance(each, int)
    ]


async def _respond(
    served: Served, http: Request, request: GenerationRequest, answers: list[Answer], sampling: Sampling, kind: str
) -> Response:
    if request.model != served.name:
        raise UsageError(f"model {request.model!r}: this server has {served.name!r}")
    frame = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
    if not request.stream:
        if await _unless_left(http, _fill(served, answers, sampling)) is None:
            return Response(status_code=_CLIENT_LEFT)
        choices = [answer.choice() for answer in answers]
        return JSONResponse({**frame, "object": kind, "choices": choices, "usage": usage(answers)})
    if len(answers) > 1:
        raise UsageError("several prompts cannot be streamed in one request")
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
    show: Callable[[dict[str, Any]], str] = lambda chunk: f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"  # noqa: E731
    yield show(first)
    async for chunk in rest:
        yield show(chunk)
    yield "data: [DONE]\n\n"


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    kinds = {400: "invalid_request_error", 429: "rate_limit_error"}
    error = {"message": message, "type": kinds.get(status, "server_error"), "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers)
