"""The server's application, and how OpenAI's completions and chat completions are asked for."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import Response

from flagrelease.engine.serve.answering import respond
from flagrelease.engine.serve.answers.choices import Choices
from flagrelease.engine.serve.answers.logprobs import check_kept
from flagrelease.engine.serve.answers.openai import ChatAnswer, CompletionAnswer
from flagrelease.engine.serve.asked import asked_chat
from flagrelease.engine.serve.constrained import constrained
from flagrelease.engine.serve.described import describe
from flagrelease.engine.serve.messages import add_messages
from flagrelease.engine.serve.requests.protocol import ChatRequest, CompletionRequest
from flagrelease.engine.serve.requests.refusals import JsonRoute, blamed, install
from flagrelease.engine.serve.responses import add_responses
from flagrelease.engine.serve.served import Served as Served
from flagrelease.engine.serve.status import add_status
from flagrelease.engine.serve.tokens import add_tokens


def make_app(served: Served) -> FastAPI:
    """The application; the caller starts and stops the service."""
    app = FastAPI(title="flagrelease", docs_url=None, redoc_url=None)
    app.router.route_class = JsonRoute
    install(app)

    add_status(app, served)
    add_tokens(app, served)
    add_responses(app, served)
    add_messages(app, served)

    @app.post("/v1/completions")
    async def completions(request: CompletionRequest, http: Request) -> Response:
        served.check_model(request.model)
        constraint = await constrained(served, request, "content")
        samplings = request.samplings(
            request.logprobs, request.max_tokens, served.tokenizer, constraint, echo=request.echo
        )
        with blamed("prompt"):
            prompts = await request.tokens(served.encode_each)
        asked = [(prompt, sampling) for prompt in prompts for sampling in samplings]
        check_kept(asked, served.service.context, stream=request.stream)
        answers = [CompletionAnswer(prompt, sampling, served.tokenizer, request.shown) for prompt, sampling in asked]
        choices = Choices(answers, request, served.name, "text_completion")
        with blamed("prompt"):
            return await respond(served.service, http, asked, choices, stream=request.stream)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: ChatRequest, http: Request) -> Response:
        asked = await asked_chat(served, request)
        check_kept(asked.sequences, served.service.context, stream=request.stream)
        answers = [
            ChatAnswer(asked.prompt, asked.opening, sampling, served.tokenizer, request.shown)
            for sampling in asked.samplings
        ]
        choices = Choices(answers, request, served.name, "chat.completion")
        with blamed("messages"):
            return await respond(served.service, http, asked.sequences, choices, stream=request.stream)

    describe(app, served.name)
    return app
