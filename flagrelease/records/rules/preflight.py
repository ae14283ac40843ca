"""Rules of the pre-flight."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from flagrelease.records.rules.strict import Strict

CheckId = Literal[
    "identity", "context", "prompt-tokens", "one-bos", "quoted-markup", "efforts", "ends", "no-markup", "stop-string",
    "reasoning-apart", "no-reasoning", "tool-call", "tool-stream", "own-call", "greedy", "seeds", "logprobs", "usage",
    "streamed", "bad-request",
]  # fmt: skip


class PreflightRules(Strict):
    """What a server must do before hours are spent on it.

    Attributes:
        max_tokens: of an answer.
        thinking_tokens: of an answer that thinks.
        call_tokens: of an answer that calls a tool.
        context: tokens of prompt and answer that the server must take; None: the most that the other stages ask for.
        tie: a greedy answer that is another one where the likeliest token was less than so many nats ahead is no fault.
        chance: seeds show nothing where another seed gives the same answer with more than this probability.
        accepted: by check, why it may fail or stay unshown; it then decides nothing, and the report gives the reason.
    """

    max_tokens: int = Field(default=48, ge=8)
    thinking_tokens: int = Field(default=512, ge=8)
    call_tokens: int = Field(default=256, ge=8)
    context: int | None = Field(default=None, ge=1)
    tie: float = Field(default=0.5, gt=0)
    chance: float = Field(default=0.01, gt=0, lt=1)
    accepted: dict[CheckId, str] = Field(default={})
