"""Asks a server everything that the checks look at: some seventy requests, most of them for one token."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from flagrelease.errors import NetworkError
from flagrelease.model.chats import encode_messages
from flagrelease.model.v4.efforts import Efforts
from flagrelease.records.rules import PreflightRules
from flagrelease.retry import Patience
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.endpoint.asks import ChatAsk
from flagrelease.validate.endpoint.client import EndpointClient
from flagrelease.validate.endpoint.queue import ask_each
from flagrelease.validate.endpoint.reading import MalformedReplyError
from flagrelease.validate.endpoint.replies import ChatReply, StreamedReply, Unsupported
from flagrelease.validate.preflight.ending import choose_stop
from flagrelease.validate.preflight.identity import Listed
from flagrelease.validate.preflight.prompts import CASES, WEATHER, ChatCase, CountedPrompt, efforts_asked

if TYPE_CHECKING:
    from flagrelease.engine.text import Tokenizer

TOP = 5  # alternatives that are asked for
_QUESTION = "Describe a harbour town in the morning, in two sentences."
_SHORT = ("Reply with the single word: ready", "What is the capital of France? One word.")
_HARD = (
    "Which is larger, 9.8 or 9.11? Explain.",
    "A bat and a ball cost 1.10 together; the bat costs 1 more. The ball?",
)
_FORECAST = "What will the weather be in Oslo in the next 3 days? Use the tool."
_WRONG: dict[str, Mapping[str, Any]] = {
    "a negative max_tokens": {"max_tokens": -1},
    "a temperature in words": {"temperature": "hot"},  # an empty list of messages is answered by vLLM
    "another model": {"model": "no model has this name"},
}
Replied = ChatReply | Unsupported
A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class PreflightReplies:
    """What came, by what it was asked for.

    Attributes:
        greedy: the same question several times, with log-probabilities where the server gives them.
        scored: the first of them, or why there are no log-probabilities.
        stop: a text in it, and the answer to the request that names it.
        forced, own: calls of a tool, required and not; `forced_stream`: the required one in pieces.
        same, others: answers at temperature 1 to one seed, and to others.
        wrong: what came to requests that make no sense; a text is an error of the server.
    """

    listed: Listed
    prompts: tuple[CountedPrompt, ...]
    greedy: tuple[Replied, ...]
    scored: Replied
    streamed: StreamedReply | Unsupported
    short: tuple[Replied, ...]
    stop: tuple[str | None, Replied | None]
    thinking: tuple[Replied, ...]
    forced: Replied
    forced_stream: StreamedReply | Unsupported
    own: Replied
    same: tuple[Replied, ...]
    others: tuple[Replied, ...]
    wrong: Mapping[str, Replied | str]

    @property
    def every(self) -> list[ChatReply]:
        """All answers, for what they cost."""
        streams = [each.reply for each in (self.streamed, self.forced_stream) if isinstance(each, StreamedReply)]
        told = [self.stop[1]] if self.stop[1] is not None else []
        asked = [*self.greedy, *self.short, *told, *self.thinking, self.forced, self.own, *self.same, *self.others]
        counted = [prompt.reply for prompt in self.prompts]
        return [*streams, *(reply for reply in (*asked, *counted) if isinstance(reply, ChatReply))]


@dataclass(frozen=True, slots=True)
class PreflightAsker:
    """Asks one server; `efforts` and `tokenizer` are those of the release that is meant to be there."""

    endpoint: Endpoint
    efforts: Efforts
    tokenizer: Tokenizer
    rules: PreflightRules
    watch: Callable[[int, int], None]

    def ask(self) -> PreflightReplies:
        """Everything. What is compared with itself is asked alone, the rest several at once.

        Raises:
            NetworkError: the server does not answer.
            MalformedReplyError: to a short chat it answers with something that is not as the protocol says.
        """
        (listed,) = self._read([None], lambda client, _: client.models())
        prompts = tuple(self._prompts())
        plain = self._plain(_QUESTION)
        (scored,) = self._alone([replace(plain, logprobs=TOP)])
        greedy = replace(plain, logprobs=TOP) if isinstance(scored, ChatReply) else plain
        tools = replace(self._plain(_FORECAST, self.rules.call_tokens), tools=(WEATHER,))
        forced, own = replace(tools, tool_choice="required"), replace(tools, tool_choice="auto")
        drawn = replace(greedy, temperature=1.0)
        asks = {
            "greedy": [greedy] * (2 if isinstance(scored, ChatReply) else 3),
            "short": [self._plain(text) for text in _SHORT],
            "thinking": [self._thinking(text) for text in _HARD],
            "calls": [forced, own],
            "same": [replace(drawn, seed=1)] * 2,
            "others": [replace(drawn, seed=seed) for seed in (2, 3, 4)],
        }
        found = dict(zip(asks, self._groups(list(asks.values())), strict=True))
        repeated = (scored, *found["greedy"]) if isinstance(scored, ChatReply) else tuple(found["greedy"])
        streamed, forced_stream = self._read([greedy, forced], EndpointClient.stream, at_once=1)
        return PreflightReplies(
            listed=listed,
            prompts=prompts,
            greedy=repeated,
            scored=scored,
            streamed=streamed,
            short=tuple(found["short"]),
            stop=self._stopped(repeated[0]),
            thinking=tuple(found["thinking"]),
            forced=found["calls"][0],
            forced_stream=forced_stream,
            own=found["calls"][1],
            same=tuple(found["same"]),
            others=tuple(found["others"]),
            wrong=self._wrong(),
        )

    def _prompts(self) -> Iterator[CountedPrompt]:
        asks = [(case, effort) for case in CASES for effort in efforts_asked(self.efforts)]
        chats = {
            (case.id, effort.name): ChatAsk(case.messages, 1, effort=effort, tools=case.tools, token_ids=True)
            for case, effort in asks
        }
        replies = self._several(chats)
        for number, (case, effort) in enumerate(asks, 1):
            self.watch(number, len(asks))
            encoded = encode_messages(_as_dicts(case), effort, [dict(tool) for tool in case.tools])
            reply = replies[case.id, effort.name]
            expected = tuple(self.tokenizer.encode(encoded))
            yield CountedPrompt(case, effort, expected, len(self.tokenizer.encode(encoded.text)), reply)

    def _several(self, chats: Mapping[tuple[str, str], ChatAsk]) -> dict[tuple[str, str], Replied]:
        """With the ids of the prompts' tokens, or without where a server refuses to give them."""
        found = dict(zip(chats, self._each(list(chats.values()), EndpointClient.chat), strict=True))
        refused = [key for key, reply in found.items() if isinstance(reply, Unsupported)]
        plain = [replace(chats[key], token_ids=False) for key in refused]
        return found | dict(zip(refused, self._each(plain, EndpointClient.chat), strict=True))

    def _stopped(self, whole: Replied) -> tuple[str | None, Replied | None]:
        stop = choose_stop(whole.content) if isinstance(whole, ChatReply) else None
        if stop is None:
            return None, None
        (stopped,) = self._alone([replace(self._plain(_QUESTION), stop=(stop,))])
        return stop, stopped

    def _wrong(self) -> dict[str, Replied | str]:
        """Asked once each: a server that fails at them is not waited for."""
        found: dict[str, Replied | str] = {}
        for what, fields in _WRONG.items():
            ask = replace(self._plain(_SHORT[0]), extra=fields)
            try:
                ((_, found[what]),) = ask_each(self.endpoint, [ask], EndpointClient.chat, Patience(attempts=1))
            except NetworkError as error:
                found[what] = str(error)
        return found

    def _plain(self, text: str, most: int | None = None) -> ChatAsk:
        most = self.rules.max_tokens if most is None else most
        return ChatAsk(({"role": "user", "content": text},), most, effort=self.efforts.of("chat"))

    def _thinking(self, text: str) -> ChatAsk:
        return replace(self._plain(text, self.rules.thinking_tokens), effort=self.efforts.of("thinking"))

    def _groups(self, groups: Sequence[Sequence[ChatAsk]]) -> list[list[Replied]]:
        """Replies to each group of asks, all of them one after the other."""
        replies = iter(self._alone([ask for group in groups for ask in group]))
        return [[next(replies) for _ in group] for group in groups]

    def _alone(self, asks: Sequence[ChatAsk]) -> list[Replied]:
        return self._read(asks, EndpointClient.chat, at_once=1)

    def _read(
        self, asks: Sequence[A], call: Callable[[EndpointClient, A], Coroutine[Any, Any, R]], at_once: int | None = None
    ) -> list[R | Unsupported]:
        """As `_each`; a reply that cannot be read is one for the checks, which name the line to change."""

        async def ask(client: EndpointClient, each: A) -> R | Unsupported:
            try:
                return await call(client, each)
            except MalformedReplyError as error:
                return Unsupported("the protocol", error.said)

        return self._each(asks, ask, at_once)

    def _each(
        self, asks: Sequence[A], call: Callable[[EndpointClient, A], Coroutine[Any, Any, R]], at_once: int | None = None
    ) -> list[R]:
        """Replies in the order of the asks."""
        endpoint = replace(self.endpoint, concurrency=at_once or self.endpoint.concurrency)
        numbered = list(enumerate(asks))

        async def ask(client: EndpointClient, each: tuple[int, A]) -> R:
            return await call(client, each[1])

        found = {number: reply for (number, _), reply in ask_each(endpoint, numbered, ask)}
        return [found[number] for number, _ in numbered]


def _as_dicts(case: ChatCase) -> list[dict[str, Any]]:
    return [dict(message) for message in case.messages]
