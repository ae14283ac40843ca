"""/v1/responses: OpenAI's Responses."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import Response

from flagrelease.engine.serve.answering import respond
from flagrelease.engine.serve.answers.responses import ResponseAnswer
from flagrelease.engine.serve.asked import asked_meant
from flagrelease.engine.serve.requests.refusals import blamed
from flagrelease.engine.serve.requests.responses import PLACES, ResponsesRequest
from flagrelease.engine.serve.requests.translated import renamed
from flagrelease.engine.serve.served import Served


def add_responses(app: FastAPI, served: Served) -> None:
    """Add the route."""

    @app.post("/v1/responses")
    async def responses(request: ResponsesRequest, http: Request) -> Response:
        with renamed(PLACES), blamed("messages"):
            asked = await asked_meant(served, request)
            answer = ResponseAnswer(request, asked, served.name)
            return await respond(served.service, http, asked.sequences, answer, stream=request.stream)
