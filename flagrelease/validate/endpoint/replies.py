"""What an endpoint gives back, checked and typed; `raw` has the whole document for what is not typed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flagrelease.model.v4.dsml import ToolCall


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that the server lists. `context`: the most tokens of prompt and answer; None if it does not tell."""

    id: str
    context: int | None
    owned_by: str | None


@dataclass(frozen=True, slots=True)
class TokensUsed:
    """`prompt`: of the whole prompt, chat format included; `answer`: with the reasoning. `cached`: None if not told."""

    prompt: int
    answer: int
    cached: int | None


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token with its log-probability (natural logarithm).

    Attributes:
        text: as the server shows it: a token that is no whole characters has a form of the server's own.
        id: None where the server tells only the text.
        logprob: None for the first token of a prompt, which nothing precedes.
        rank: from 1, in the whole vocabulary, None where the server does not tell.
        top: the most likely tokens in its place, likeliest first, as many as the server gave; their `top` is empty.
    """

    text: str
    id: int | None
    logprob: float | None
    rank: int | None = None
    top: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatReply:
    """One answer of a chat.

    Attributes:
        content, reasoning: empty where there is none; the reasoning under either of its names.
        finish: as the server says it: "stop", "length", "tool_calls", ..
        logprobs: of the answer's tokens, None if not asked for or not given. `flagrelease serve` and DeepSeek's API
            list the reasoning's apart, as `reasoning_logprobs`; vLLM and SGLang have all in one list.
        prompt_logprobs: of the prompt's tokens from the first one.
        token_ids, prompt_token_ids: None if not asked for or not given.
        raw: the document; of a stream, None: see `StreamedReply.chunks`.
    """

    content: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish: str
    used: TokensUsed
    logprobs: tuple[ScoredToken, ...] | None
    reasoning_logprobs: tuple[ScoredToken, ...] | None
    prompt_logprobs: tuple[ScoredToken, ...] | None
    token_ids: tuple[int, ...] | None
    prompt_token_ids: tuple[int, ...] | None
    raw: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class StreamedReply:
    """An answer that came in pieces.

    Attributes:
        reply: what the pieces make together.
        chunks: every document of the stream, in order.
        done: whether the stream ended with its [DONE]; without it the answer may be cut.
    """

    reply: ChatReply
    chunks: tuple[Mapping[str, Any], ...]
    done: bool


@dataclass(frozen=True, slots=True)
class CompletionReply:
    """One continuation of a text.

    Attributes:
        text: with `echo` the prompt's too.
        logprobs: of the continuation's tokens, or with `echo` of the prompt's and the continuation's; None if not
            given.
        prompt_logprobs: of the prompt's tokens from the first one, in vLLM's form; None if not given.
        token_ids, prompt_token_ids: None if not asked for or not given.
    """

    text: str
    finish: str
    used: TokensUsed
    logprobs: tuple[ScoredToken, ...] | None
    prompt_logprobs: tuple[ScoredToken, ...] | None
    token_ids: tuple[int, ...] | None
    prompt_token_ids: tuple[int, ...] | None
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """What the server makes of a prompt. `context`: as in `ServedModel`."""

    ids: tuple[int, ...]
    context: int | None


@dataclass(frozen=True, slots=True)
class Unsupported:
    """The server cannot do what was asked.

    Attributes:
        what: the path, and the fields of the request that not every server has, such as "completions with echo".
        reason: "HTTP 400 (echo)", or what the reply lacks; never what the server wrote, which may quote the prompt.
        status: the HTTP status; None where the server answered, but without what was asked for.
        reply: that answer.
    """

    what: str
    reason: str
    status: int | None = None
    reply: ChatReply | CompletionReply | None = None

    @property
    def malformed(self) -> bool:
        """Whether it answered with something that is not what the protocol says."""
        return self.status is None and self.reply is None

    @property
    def told(self) -> str:
        """For a line about one request: that it was refused, or what the reply lacks."""
        return self.reason if self.status is None else f"refused ({self.reason})"

    def __str__(self) -> str:
        """For a report: what, and why not."""
        return f"{self.what}: {self.reason}"
