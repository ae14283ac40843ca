"""/v1/messages: Anthropic's Messages, and how many tokens such a request has."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import Response

from flagrelease.engine.serve.answering import respond
from flagrelease.engine.serve.answers.messages import MessageAnswer
from flagrelease.engine.serve.asked import asked_meant
from flagrelease.engine.serve.requests.messages import PLACES, CountTokensRequest, MessagesRequest
from flagrelease.engine.serve.requests.refusals import ParameterError, blamed
from flagrelease.engine.serve.requests.translated import renamed
from flagrelease.engine.serve.served import Served

_VERSIONS = ("2023-06-01", "2026-10-21")  # the second takes no sampling parameters at Anthropic; here it does


def add_messages(app: FastAPI, served: Served) -> None:
    """Add the routes."""

    @app.post("/v1/messages")
    async def messages(request: MessagesRequest, http: Request) -> Response:
        _check_version(http)
        with renamed(PLACES), blamed("messages"):
            asked = await asked_meant(served, request)
            asked = asked.within(served.service.context)
            answer = MessageAnswer(request, asked, served.name)
            return await respond(served.service, http, asked.sequences, answer, stream=request.stream)

    @app.post("/v1/messages/count_tokens")
    async def count_tokens(request: CountTokensRequest, http: Request) -> dict[str, int]:
        _check_version(http)
        with renamed(PLACES):
            asked = await asked_meant(served, request)
        return {"input_tokens": len(asked.prompt)}


def _check_version(http: Request) -> None:
    """Refuse a version whose requests or answers have another form than ours."""
    version = http.headers.get("anthropic-version", _VERSIONS[-1])
    if version not in _VERSIONS:
        words = f"anthropic-version: {version!r} is not spoken here; {' and '.join(_VERSIONS)} are"
        raise ParameterError(words, "anthropic-version")
