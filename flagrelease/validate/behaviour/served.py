"""Asking a server: the same chats, with their tools, in the form of OpenAI's interface.

A prompt that asks for JSON says so in its text, as the model was trained to read it, and sends no `response_format`:
under that one a server forbids every token that would break the JSON, so that a damaged model would look sound. It also
changes the prompt on some servers and not on others, and the two sides would not be asked the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flagrelease.errors import NetworkError
from flagrelease.model.v4.chat import with_format_in_text
from flagrelease.model.v4.completion import Completion
from flagrelease.model.v4.efforts import Effort
from flagrelease.records.rules import BehaviourRules
from flagrelease.retry import Patience
from flagrelease.validate.behaviour.answers import Reply, digest_of
from flagrelease.validate.behaviour.journal import PromptAsk
from flagrelease.validate.behaviour.prompts import Prompt
from flagrelease.validate.behaviour.signs import grants, is_clean, loops, read_completion
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.endpoint.asks import ChatAsk
from flagrelease.validate.endpoint.client import EndpointClient
from flagrelease.validate.endpoint.queue import SILENCE, ask_each
from flagrelease.validate.endpoint.replies import ChatReply, TokenizedPrompt, Unsupported

_FINISHES = {"stop": "stop", "tool_calls": "stop", "length": "length"}


@dataclass(frozen=True, slots=True)
class EndpointAsker:
    """A model behind an address. `effort`: what it should make of the rules' mode; the rest is as of `ask_each`."""

    endpoint: Endpoint
    effort: Effort
    rules: BehaviourRules
    patience: Patience | None = None
    silence: float = SILENCE

    def __call__(self, asks: Sequence[PromptAsk]) -> Iterator[Reply]:
        """Each as soon as it is there. The tokens of each prompt are asked for first, where the server can tell them.

        Raises:
            NetworkError: the server refuses a prompt or its tools, or does not answer as its protocol says.
        """
        prompts = {ask.prompt.id: ask.prompt for ask in asks}
        told = ask_each(self.endpoint, prompts.values(), self._tokens, self.patience, self.silence)
        ids = {prompt.id: tokens for prompt, tokens in told}

        async def ask(client: EndpointClient, each: PromptAsk) -> Reply:
            return self._judged(each, await client.chat(self._chat(each.prompt, each.seed)), ids[each.prompt.id])

        for _, reply in ask_each(self.endpoint, asks, ask, self.patience, self.silence):
            yield reply

    def _chat(self, prompt: Prompt, seed: int) -> ChatAsk:
        return ChatAsk(
            messages=tuple(with_format_in_text(prompt.messages)),
            max_tokens=self.rules.max_tokens,
            temperature=self.rules.temperature,
            top_p=self.rules.top_p,
            seed=seed,
            effort=self.effort,
            tools=prompt.tools,
        )

    async def _tokens(self, client: EndpointClient, prompt: Prompt) -> tuple[int, ...] | None:
        told = await client.tokenize(self._chat(prompt, 0))
        return told.ids if isinstance(told, TokenizedPrompt) else None

    def _judged(self, ask: PromptAsk, reply: ChatReply | Unsupported, ids: tuple[int, ...] | None) -> Reply:
        shown = self.endpoint.shown
        if isinstance(reply, Unsupported):
            raise NetworkError(f"{shown}: {ask.prompt.id}: {reply}")
        if reply.finish not in _FINISHES:
            raise NetworkError(f"{shown}: {ask.prompt.id}: an answer ended with finish_reason {reply.finish!r}")
        if ids is not None and len(ids) != reply.used.prompt:
            ids = None  # /tokenize writes chats otherwise than the model is asked: it tells nothing of this prompt
        whole = _FINISHES[reply.finish] == "stop"
        completion = self._read(ask, reply) if whole else None
        return Reply(
            prompt=ask.prompt.id,
            repeat=ask.repeat,
            wish=ask.prompt.wish,
            prompt_sha256=None if ids is None else digest_of(ids),
            prompt_tokens=reply.used.prompt,
            tokens=reply.used.answer,
            finish="stop" if whole else "length",
            loops=loops(reply.reasoning + reply.content + "".join(call.arguments for call in reply.tool_calls)),
            broken=whole and completion is None,
            granted=completion is not None and grants(completion.content, completion.tool_calls, ask.prompt),
            by_server=True,
        )

    def _read(self, ask: PromptAsk, reply: ChatReply) -> Completion | None:
        """The answer as the server took it apart, or as it is if the server did not; None if it breaks the format."""
        if not reply.reasoning and not reply.tool_calls:
            return read_completion(reply.content, ask.prompt.encode(self.effort).opening)
        clean = is_clean(reply.reasoning + reply.content, reply.tool_calls)
        return Completion(reply.content, reply.reasoning, reply.tool_calls) if clean else None
