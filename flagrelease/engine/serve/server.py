"""An OpenAI-compatible server: its application, and how completions and chats are answered."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from flagrelease.concurrently import end_tasks, run_together
from flagrelease.engine.json_line import json_line
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.serve.answers.merged import merged
from flagrelease.engine.serve.answers.openai import ChatAnswer, CompletionAnswer, usage
from flagrelease.engine.serve.requests.protocol import ChatRequest, CompletionRequest, GenerationRequest
from flagrelease.engine.serve.requests.refusals import JsonRoute, blamed, install
from flagrelease.engine.serve.served import Served as Served
from flagrelease.engine.serve.service import Stream
from flagrelease.engine.serve.status import add_status
from flagrelease.engine.serve.tokens import add_tokens

T = TypeVar("T")
Answer = ChatAnswer | CompletionAnswer
_CLIENT_LEFT = 499  # nginx's number, for logs: nobody reads the response


@dataclass(frozen=True, slots=True)
class Asked:
    """One sequence of a request: its answer, which knows the prompt, and how it is continued."""

    answer: Answer
    sampling: Sampling


def make_app(served: Served) -> FastAPI:
    """The application; the caller starts and stops the service."""
    app = FastAPI(title="flagrelease", docs_url=None, redoc_url=None)
    app.router.route_class = JsonRoute
    install(app)

    add_status(app, served)
    add_tokens(app, served)

    @app.post("/v1/completions")
    async def completions(request: CompletionRequest, http: Request) -> Response:
        served.check_model(request.model)
        samplings = request.samplings(request.logprobs, request.max_tokens, echo=request.echo)
        asked = [
            Asked(CompletionAnswer(prompt, sampling, served.tokenizer), sampling)
            for prompt in request.tokens(served.tokenizer)
            for sampling in samplings
        ]
        with blamed("prompt"):
            return await _respond(served, http, request, asked, "text_completion")

    @app.post("/v1/chat/completions")
    async def chat_completions(request: ChatRequest, http: Request) -> Response:
        served.check_model(request.model)
        mode = request.mode(served.mode)
        samplings = request.samplings(request.scores(), request.limit())
        chat = request.encoded(mode)
        prompt, tokenizer = served.tokenizer.encode(chat), served.tokenizer
        asked = [Asked(ChatAnswer(prompt, mode, chat.part, sampling, tokenizer), sampling) for sampling in samplings]
        with blamed("messages"):
            return await _respond(served, http, request, asked, "chat.completion")

    return app


async def _respond(
    served: Served, http: Request, request: GenerationRequest, asked: list[Asked], kind: str
) -> Response:
    frame = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
    if not request.stream:
        if await _unless_left(http, _fill(served, asked)) is None:
            return Response(status_code=_CLIENT_LEFT)
        answers = [each.answer for each in asked]
        choices = [{**answer.choice(), "index": n} for n, answer in enumerate(answers)]
        return JSONResponse({**frame, "object": kind, "choices": choices, "usage": usage(answers, request.n)})
    chunk = {**frame, "object": "chat.completion.chunk" if kind == "chat.completion" else kind}
    chunks = _chunks(served, asked, chunk, request)
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


def _open(served: Served, asked: Sequence[Asked]) -> list[Stream]:
    return served.service.open([(each.answer.prompt, each.sampling) for each in asked])


async def _fill(served: Served, asked: Sequence[Asked]) -> bool:
    """Let the answers be written."""
    streams = _open(served, asked)
    try:
        await run_together(_write(each.answer, stream) for each, stream in zip(asked, streams, strict=True))
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
    served: Served, asked: Sequence[Asked], frame: dict[str, Any], request: GenerationRequest
) -> AsyncIterator[dict[str, Any]]:
    answers = [each.answer for each in asked]
    usages: dict[str, Any] = {"usage": None} if request.streaming.include_usage else {}
    streams = _open(served, asked)
    try:
        async with aclosing(merged(streams)) as events:
            async for n, event in events:
                for choice in answers[n].add(event):
                    if request.streaming.continuous_usage_stats:
                        usages = {"usage": usage(answers, request.n)}
                    yield {**frame, "choices": [{**choice, "index": n}], **usages}
    finally:
        for stream in streams:
            stream.close()
    if request.streaming.include_usage:
        yield {**frame, "choices": [], "usage": usage(answers, request.n)}


async def _lines(first: dict[str, Any], rest: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Server-sent events."""
    show: Callable[[dict[str, Any]], str] = lambda chunk: f"data: {json_line(chunk)}\n\n"  # noqa: E731
    yield show(first)
    async for chunk in rest:
        yield show(chunk)
    yield "data: [DONE]\n\n"
