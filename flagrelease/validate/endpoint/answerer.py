"""A server with OpenAI's chat completions as an answerer of exams."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from flagrelease.errors import NetworkError
from flagrelease.model.v4.chat import END_THINK
from flagrelease.model.v4.efforts import Efforts
from flagrelease.retry import Patience
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.endpoint.asks import ChatAsk
from flagrelease.validate.endpoint.client import EndpointClient
from flagrelease.validate.endpoint.queue import SILENCE, ask_each
from flagrelease.validate.endpoint.replies import ChatReply, Unsupported
from flagrelease.validate.exams.answerer import Ask, AskRules, Finish, Reply
from flagrelease.validate.exams.extraction import final_text

_FINISHES = ("stop", "length")


@dataclass(frozen=True, slots=True)
class EndpointAnswerer:
    """A model behind an address.

    Attributes:
        stack: machine and software, for the reader of the report.
        efforts: those of the model that is meant to be there; a request names one of them.
        silence, patience: as of `ask_each`.
    """

    endpoint: Endpoint
    stack: str
    efforts: Efforts
    silence: float = SILENCE
    patience: Patience = field(default_factory=Patience)

    def answer(self, asks: Sequence[Ask], rules: AskRules) -> Iterator[tuple[Ask, Reply]]:
        """As `Answerer` says. After an error, or when the caller stops listening, open requests are given up."""

        async def ask(client: EndpointClient, each: Ask) -> Reply:
            return self._read(await client.chat(self._chat(each, rules)), rules)

        return ask_each(self.endpoint, asks, ask, self.patience, self.silence)

    def _chat(self, ask: Ask, rules: AskRules) -> ChatAsk:
        return ChatAsk(
            messages=({"role": "user", "content": ask.prompt},),
            max_tokens=rules.max_tokens,
            temperature=rules.temperature,
            top_p=rules.top_p,
            seed=ask.seed,
            effort=self.efforts.of(rules.mode),
        )

    def _read(self, reply: ChatReply | Unsupported, rules: AskRules) -> Reply:
        if isinstance(reply, Unsupported):
            raise NetworkError(f"{self.endpoint.shown}: {reply.reason} for model {self.endpoint.model!r}")
        if reply.finish not in _FINISHES:
            raise NetworkError(f"{self.endpoint.shown}: an answer ended with finish_reason {reply.finish!r}")
        whole = whole_text(reply)
        cut_off = self.efforts.of(rules.mode).thinks and reply.finish == "length" and END_THINK not in whole
        return Reply(
            text="" if cut_off else final_text(whole, reasons=False),
            reasoned=bool(reply.reasoning) or END_THINK in reply.content or cut_off,
            prompt_tokens=reply.used.prompt,
            tokens=reply.used.answer,
            finish=cast(Finish, reply.finish),
            whole_sha256=hashlib.sha256(whole.encode()).hexdigest(),
        )


def whole_text(reply: ChatReply) -> str:
    """Reasoning and text as the model wrote them; a server without a reasoning parser has both in the text."""
    return reply.reasoning + END_THINK + reply.content if reply.reasoning else reply.content
