"""What a chat asks of the engine, whichever interface it came by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from pydantic import BaseModel

from flagrelease.engine.batch.scheduler import Request as Sequenced
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.serve.constrained import constrained
from flagrelease.engine.serve.requests.prompts import Conversation
from flagrelease.engine.serve.requests.protocol import ChatRequest
from flagrelease.engine.serve.requests.refusals import blamed
from flagrelease.engine.serve.served import Served, aside
from flagrelease.model.v4.encoded import EncodedChat, Opening

_SHORT = 4096  # characters and values, encoded in milliseconds; calls whose arguments are large take a minute


@dataclass(frozen=True, slots=True)
class AskedChat:
    """A chat's prompt in tokens, which ended in `opening`. A sampling for each choice."""

    prompt: list[int]
    opening: Opening
    samplings: list[Sampling]

    @property
    def sequences(self) -> list[Sequenced]:
        """As the service takes them."""
        return [(self.prompt, sampling) for sampling in self.samplings]

    def within(self, context: int) -> AskedChat:
        """The same, ended by the context of so many tokens where `max_tokens` would reach beyond it."""
        room = context - len(self.prompt)
        cut = [
            replace(each, max_tokens=None) if each.max_tokens is not None and each.max_tokens > room else each
            for each in self.samplings
        ]
        return replace(self, samplings=cut)


async def encoded(served: Served, request: Conversation) -> EncodedChat:
    """The prompt of a conversation; a long one is encoded beside the event loop.

    Raises:
        ParameterError: parameters contradict each other, or the encoding refuses a message.
    """
    with blamed("reasoning_effort"):
        effort = served.efforts.of(request.mode(served.mode))
    return request.encoded(effort) if is_short(request) else await aside(lambda: request.encoded(effort))


async def asked_chat(served: Served, request: ChatRequest) -> AskedChat:
    """Check a chat's model, encode it, and tell how it is continued.

    Raises:
        ParameterError: the model is another one, parameters contradict each other, or the encoding refuses a message.
    """
    served.check_model(request.model)
    chat = await encoded(served, request)
    constraint = await constrained(served, request, chat.opening.part, chat.opening.spelling)
    samplings = request.samplings(request.scores(), request.limit(), served.tokenizer, constraint)
    with blamed("messages"):
        return AskedChat(await served.encode(chat), chat.opening, samplings)


class Meant(Protocol):
    """A request of another interface, which means a chat."""

    def chat(self) -> ChatRequest:
        """That chat."""
        ...


async def asked_meant(served: Served, request: Meant) -> AskedChat:
    """What the chat asks that a request means.

    Raises:
        ParameterError: as for the chat, whose parameters it names.
    """
    return await asked_chat(served, request.chat() if is_short(request) else await aside(request.chat))


def is_short(request: object) -> bool:
    """Whether a request is so short that the event loop can work on it. No more of it is looked at than that takes."""
    left, size = [request], 0
    while left and size <= _SHORT:
        each = left.pop()
        size += 1 + (len(each) if isinstance(each, str | list | dict) else 0)
        if isinstance(each, BaseModel):
            left += vars(each).values()
        elif isinstance(each, dict):
            left += [*each, *each.values()]
        elif isinstance(each, list):
            left += each
    return size <= _SHORT
