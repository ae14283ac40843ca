"""In which way a server tells the log-probabilities of a prompt's tokens: tried on one document, the best way first.

| way | the prompt | where the log-probabilities are | who has it |
|---|---|---|---|
| prompt-logprobs | token ids | `prompt_logprobs`, by token id | vLLM and its plugins, `flagrelease serve` |
| echo-ids | token ids | `logprobs` with `echo`, tokens named by id | vLLM, `flagrelease serve` |
| echo-names | token ids | `logprobs` with `echo`, tokens named by text | SGLang |
| echo-text | text | the same; the begin-of-sentence token is written out | OpenAI's completions |
| echo-text-bos | text | the same; the server adds that token itself | llama.cpp's Python server |
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.endpoint.asks import CompletionAsk
from flagrelease.validate.endpoint.client import EndpointClient
from flagrelease.validate.endpoint.queue import ask_each
from flagrelease.validate.endpoint.replies import CompletionReply, ScoredToken, Unsupported
from flagrelease.validate.logits.served.names import TokenNames
from flagrelease.validate.logits.served.reading import PromptScores, UnreadableError, read_scores

WayName = Literal["prompt-logprobs", "echo-ids", "echo-names", "echo-text", "echo-text-bos"]
WAYS: tuple[WayName, ...] = get_args(WayName)
_FEWER = (20, 5, 1)  # vLLM's and our limit, OpenAI's, and the least


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is scored: token ids and the text that they stand for, empty if there is no tokenizer.

    `text_behind_first` lacks the first token, which is the begin of sentence.
    """

    number: int
    tokens: tuple[int, ...]
    text: str
    text_behind_first: str


@dataclass(frozen=True, slots=True)
class Scored:
    """What became of a prompt: its scores, or in words why there are none; and what it cost."""

    prompt: Prompt
    scores: PromptScores | str
    seconds: float


class Way(BaseModel):
    """How prompts are scored, and how many `alternatives` are asked for at each place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: WayName
    alternatives: int = Field(ge=1)

    def ask(self, prompt: Prompt) -> CompletionAsk:
        """The request. One token more is asked for, since servers refuse none; it is not looked at."""
        if self.name == "prompt-logprobs":
            return CompletionAsk(prompt.tokens, max_tokens=1, prompt_logprobs=self.alternatives)
        by_id = {"return_tokens_as_token_ids": True} if self.name == "echo-ids" else {}
        texts = {"echo-text": prompt.text, "echo-text-bos": prompt.text_behind_first}
        asked = texts.get(self.name, prompt.tokens)
        return CompletionAsk(asked, max_tokens=1, echo=True, logprobs=self.alternatives, extra=by_id)

    def read(self, prompt: Prompt, reply: CompletionReply | Unsupported, names: TokenNames | None) -> PromptScores:
        """What a reply tells of the prompt.

        Raises:
            UnreadableError: the server refused, or tells of other tokens.
        """
        if isinstance(reply, Unsupported):
            raise UnreadableError(reply.reason)
        if reply.used.prompt != len(prompt.tokens):  # a begin of sentence that is not shown, or that was not read
            raise UnreadableError(
                f"the server did not read the same tokens: {reply.used.prompt}, the document has {len(prompt.tokens)}"
            )
        told: tuple[ScoredToken, ...] | None = reply.prompt_logprobs
        if self.name != "prompt-logprobs":
            told = reply.logprobs
        scores = read_scores(told or (), prompt.tokens, names, self.alternatives)
        self._refuse_short([each for each in (told or ())[: len(prompt.tokens)] if each.logprob is not None])
        return scores

    def _refuse_short(self, told: Sequence[ScoredToken]) -> None:
        """Servers may give fewer alternatives without saying so, and what lists show is worked out from their length.

        A list by name has one entry for all tokens of the same name, so it may lose some.
        """
        least = self.alternatives if self.name in ("prompt-logprobs", "echo-ids") else (self.alternatives + 1) // 2
        if short := [len(each.top) for each in told if len(each.top) < least]:
            raise UnreadableError(
                f"{len(short)} of {len(told)} lists are shorter than asked for, the least {min(short)}"
            )


def score_each(endpoint: Endpoint, way: Way, prompts: Sequence[Prompt], names: TokenNames | None) -> Iterator[Scored]:
    """Score prompts, as many at once as the endpoint takes; each as soon as it is there.

    Raises:
        NetworkError: as `EndpointClient.complete`; what was there before comes first.
    """

    async def ask(client: EndpointClient, prompt: Prompt) -> Scored:
        began = time.monotonic()
        reply = await client.complete(way.ask(prompt))
        seconds = time.monotonic() - began
        try:
            return Scored(prompt, way.read(prompt, reply, names), seconds)
        except UnreadableError as error:
            return Scored(prompt, str(error), seconds)

    return (scored for _, scored in ask_each(endpoint, prompts, ask))


def find_way(endpoint: Endpoint, prompt: Prompt, names: TokenNames | None, most: int) -> Way | str:
    """The best way that the server has, with the most alternatives up to `most`; or in words why it has none.

    Raises:
        NetworkError: the server cannot be asked at all.
    """
    refusals = []
    for name in WAYS:
        if names is None and name not in ("prompt-logprobs", "echo-ids"):
            refusals.append(f"{name}: the release has no tokenizer.json to name tokens by")
            continue
        reason = ""
        for count in (most, *(fewer for fewer in _FEWER if fewer < most)):
            way = Way(name=name, alternatives=count)
            (scored,) = score_each(endpoint, way, [prompt], names)
            if not isinstance(scored.scores, str):
                return way
            reason = scored.scores
        refusals.append(f"{name}: {reason}")
    return f"the server at {endpoint.shown} gives no log-probabilities of prompts ({'; '.join(refusals)})"
