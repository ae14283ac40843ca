"""/tokenize and /detokenize, in the form of vLLM's: what a prompt is to the model."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import Discriminator, Tag

from flagrelease.engine.serve.answers.logprobs import spelt
from flagrelease.engine.serve.asked import encoded
from flagrelease.engine.serve.requests.fields import Typed, neutral
from flagrelease.engine.serve.requests.prompts import Conversation
from flagrelease.engine.serve.requests.refusals import ParameterError, blamed
from flagrelease.engine.serve.served import Served, aside


class _Tokens(Typed):
    """What both forms share. `model` is checked where it is given."""

    model: str | None = None
    add_special_tokens: Annotated[Any, neutral(False)] = None
    return_token_strs: bool = False


class TextTokens(_Tokens):
    """Of a text."""

    prompt: str


class ChatTokens(_Tokens, Conversation):
    """Of a chat, as /v1/chat/completions would encode it."""


class Detokenize(Typed):
    """Token ids to text."""

    model: str | None = None
    tokens: list[int]


def _kind(value: Any) -> str:
    return "chat" if isinstance(value, dict) and "messages" in value else "text"


Tokenize = Annotated[Annotated[TextTokens, Tag("text")] | Annotated[ChatTokens, Tag("chat")], Discriminator(_kind)]


def add_tokens(app: FastAPI, served: Served) -> None:
    """Add the routes."""

    @app.post("/tokenize")
    async def tokenize(request: Tokenize) -> dict[str, Any]:
        if request.model is not None:
            served.check_model(request.model)
        if isinstance(request, TextTokens):
            with blamed("prompt"):
                tokens = await served.encode(request.prompt)
        else:
            with blamed("messages"):
                tokens = await served.encode(await encoded(served, request))
        strings = None
        if request.return_token_strs:
            strings = await aside(lambda: [spelt(served.tokenizer.bytes_of(token)) for token in tokens])
        return {
            "count": len(tokens), "max_model_len": served.service.context, "tokens": tokens, "token_strs": strings,
        }  # fmt: skip

    @app.post("/detokenize")
    async def detokenize(request: Detokenize) -> dict[str, str]:
        if request.model is not None:
            served.check_model(request.model)
        context, vocabulary = served.service.context, served.service.vocabulary
        if len(request.tokens) > context:
            raise ParameterError(f"{len(request.tokens):,} tokens: the context is {context}", "tokens")
        if any(not 0 <= token < vocabulary for token in request.tokens):
            raise ParameterError(f"a token id outside the vocabulary of {vocabulary}", "tokens")
        return {"prompt": await aside(lambda: served.tokenizer.decode(request.tokens))}
