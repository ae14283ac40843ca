"""What a chat asks of the engine, whichever interface it came by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from flagrelease.engine.batch.scheduler import Request as Sequenced
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.serve.constrained import constrained
from flagrelease.engine.serve.requests.protocol import ChatRequest
from flagrelease.engine.serve.requests.refusals import blamed
from flagrelease.engine.serve.served import Served, aside
from flagrelease.model.v4.encoded import Opening

_FEW = 100  # messages that are encoded in about a millisecond


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


async def asked_chat(served: Served, request: ChatRequest) -> AskedChat:
    """Check a chat's model, encode it, and tell how it is continued.

    Raises:
        ParameterError: the model is another one, parameters contradict each other, or the encoding refuses a message.
    """
    served.check_model(request.model)
    effort = served.efforts.of(request.mode(served.mode))
    few = len(request.messages) <= _FEW
    chat = request.encoded(effort) if few else await aside(lambda: request.encoded(effort))
    constraint = await constrained(served, request, chat.opening.part)
    samplings = request.samplings(request.scores(), request.limit(), served.tokenizer, constraint)
    with blamed("messages"):
        return AskedChat(await served.encode(chat), chat.opening, samplings)


class Meant(Protocol):
    """A request of another interface, which means a chat."""

    def chat(self) -> ChatRequest:
        """That chat."""
        ...


async def asked_meant(served: Served, request: Meant, count: int) -> AskedChat:
    """What the chat asks that a request means, which has `count` messages or items.

    Raises:
        ParameterError: as for the chat, whose parameters it names.
    """
    return await asked_chat(served, request.chat() if count <= _FEW else await aside(request.chat))
