"""The chunks of a streamed chat, put together to the answer that they are."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from flagrelease.model.v4.dsml import ToolCall
from flagrelease.validate.endpoint import scored
from flagrelease.validate.endpoint.reading import expecting, ids_of, read_used, reasoning_of, text_of
from flagrelease.validate.endpoint.replies import ChatReply, ScoredToken


def assemble(chunks: Sequence[Mapping[str, Any]]) -> ChatReply:
    """One answer of all chunks. Texts, arguments of calls, log-probabilities and ids are those of the deltas, in order.

    Raises:
        MalformedReplyError: a chunk is none, or no chunk has the usage.
    """
    with expecting("a stream of a chat completion with its usage"):
        usage = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
        choices = [choice for chunk in chunks for choice in chunk.get("choices") or ()]
        deltas = [choice.get("delta") or {} for choice in choices]
        finishes = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
        told = [choice.get("logprobs") or {} for choice in choices]
        prompt_ids = [each["prompt_token_ids"] for each in (*choices, *chunks) if each.get("prompt_token_ids")]
        ids = [found for choice in choices if (found := ids_of(choice.get("token_ids"))) is not None]
        if any(choice.get("index") for choice in choices):
            raise ValueError
        return ChatReply(
            content=text_of(delta.get("content") for delta in deltas),
            reasoning="".join(map(reasoning_of, deltas)),
            tool_calls=_calls(deltas),
            finish=str(finishes[-1]) if finishes else "",
            used=read_used(usage[-1]),
            logprobs=_scored(told, "content"),
            reasoning_logprobs=_scored(told, "reasoning_content"),
            prompt_logprobs=None,  # no server gives them in a stream
            token_ids=tuple(itertools.chain.from_iterable(ids)) if ids else None,
            prompt_token_ids=ids_of(prompt_ids[0]) if prompt_ids else None,
            raw=None,
        )


def _calls(deltas: Sequence[Mapping[str, Any]]) -> tuple[ToolCall, ...]:
    """By their index; a call's name comes first, then more and more of its arguments."""
    names: dict[int, str] = {}
    arguments: dict[int, list[str]] = {}
    for delta in deltas:
        for piece in delta.get("tool_calls") or ():
            at, function = int(piece["index"]), piece.get("function") or {}
            names[at] = names.get(at, "") + (function.get("name") or "")
            arguments.setdefault(at, []).append(function.get("arguments") or "")
    return tuple(ToolCall(text_of([names[at]]), text_of(arguments[at])) for at in sorted(names))


def _scored(told: Sequence[Mapping[str, Any]], part: str) -> tuple[ScoredToken, ...] | None:
    found = [tokens for each in told if (tokens := scored.of_chat(each.get(part))) is not None]
    return tuple(token for tokens in found for token in tokens) if found else None
