"""From a JSON document of a server to a reply; what is not as the protocol says is a `MalformedReplyError`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flagrelease.errors import NetworkError
from flagrelease.model.v4.dsml import ToolCall
from flagrelease.validate.endpoint import scored
from flagrelease.validate.endpoint.asks import CompletionAsk
from flagrelease.validate.endpoint.replies import (
    ChatReply,
    CompletionReply,
    ServedModel,
    TokenizedPrompt,
    TokensUsed,
)


class MalformedReplyError(NetworkError):
    """A server answered with something that is not what the protocol says. `said`: what it is not."""

    def __init__(self, said: str, server: str | None = None) -> None:
        """The message has the address of the server before it, as soon as that is known."""
        super().__init__(said if server is None else f"{server}: {said}")
        self.said = said


@contextmanager
def expecting(what: str) -> Iterator[None]:
    """Inside, whatever a document lacks or has wrong means that it is not `what`."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError):
        raise MalformedReplyError(f"the reply is not {what}") from None  # its cause may quote the answer


def read_models(document: Any) -> tuple[ServedModel, ...]:
    """/v1/models. `max_model_len` is vLLM's, SGLang's and ours, the others' names are of other servers."""
    with expecting("a list of models"):
        return tuple(
            ServedModel(_text(each["id"]), _context(each), _text_or_none(each.get("owned_by")))
            for each in document["data"]
        )


def read_chat(document: Any) -> ChatReply:
    """A chat completion that came whole."""
    with expecting("a chat completion with one choice and its usage"):
        (choice,) = document["choices"]
        message, logprobs = choice["message"], choice.get("logprobs") or {}
        prompt_ids = _prompt_ids(document, choice)
        return ChatReply(
            content=_text(message.get("content") or ""),
            reasoning=reasoning_of(message),
            tool_calls=tuple(_call(call) for call in message.get("tool_calls") or ()),
            finish=_text_or_none(choice.get("finish_reason")) or "",
            used=read_used(document["usage"]),
            logprobs=scored.of_chat(logprobs.get("content")),
            reasoning_logprobs=scored.of_chat(logprobs.get("reasoning_content")),
            prompt_logprobs=scored.of_prompt(_either(document, choice, "prompt_logprobs"), prompt_ids),
            token_ids=ids_of(choice.get("token_ids") or choice.get("response_token_ids")),  # the latter is SGLang's
            prompt_token_ids=prompt_ids,
            raw=document,
        )


def read_completion(document: Any, ask: CompletionAsk) -> CompletionReply:
    """A completion that came whole."""
    with expecting("a completion with one choice and its usage"):
        (choice,) = document["choices"]
        told = _prompt_ids(document, choice)
        known = told if told is not None or isinstance(ask.prompt, str) else ask.prompt
        return CompletionReply(
            text=_text(choice.get("text") or ""),
            finish=_text_or_none(choice.get("finish_reason")) or "",
            used=read_used(document["usage"]),
            logprobs=scored.of_completion(choice.get("logprobs"), ask.logprobs or 0),
            prompt_logprobs=scored.of_prompt(_either(document, choice, "prompt_logprobs"), known),
            token_ids=ids_of(choice.get("token_ids")),
            prompt_token_ids=told,
            raw=document,
        )


def read_tokenized(document: Any) -> TokenizedPrompt:
    """/tokenize in vLLM's form, which SGLang and `flagrelease serve` have too."""
    with expecting("a list of token ids with its count"):
        ids = ids_of(document["tokens"])
        if ids is None or len(ids) != document["count"]:
            raise ValueError
        return TokenizedPrompt(ids, _context(document))


def read_version(content: bytes) -> str:
    """The `version` of the document that vLLM and `flagrelease serve` have at /version; empty if it is none."""
    try:
        return _text(json.loads(content)["version"])
    except (LookupError, TypeError, ValueError, RecursionError):
        return ""


def read_owners(content: bytes, model: str) -> list[str]:
    """Who owns `model`, by /v1/models; empty if that is none, or says nothing of it."""
    try:
        listed = read_models(json.loads(content))
    except (MalformedReplyError, ValueError, RecursionError):
        return []
    return [each.owned_by for each in listed if each.id == model and each.owned_by]


def read_used(usage: Any) -> TokensUsed:
    """`usage`; a `ValueError` or another one if it is none."""
    prompt, answer = usage["prompt_tokens"], usage.get("completion_tokens") or 0
    details = usage.get("prompt_tokens_details") or {}
    if not (_is_count(prompt) and _is_count(answer)) or prompt < 1:
        raise ValueError
    cached = details.get("cached_tokens")
    return TokensUsed(prompt, answer, cached if _is_count(cached) else None)


def reasoning_of(message: Mapping[str, Any]) -> str:
    """Under either of its names; vLLM has had both at once."""
    return _text(message.get("reasoning_content") or message.get("reasoning") or "")


def text_of(pieces: Iterable[Any]) -> str:
    """The text that pieces of it make, None for none of it; an error as of `read_used` if that is no text."""
    return _text("".join(piece or "" for piece in pieces))


def ids_of(value: Any) -> tuple[int, ...] | None:
    """A list of token ids; None for null."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(map(_is_count, value)):
        raise ValueError
    return tuple(value)


def _prompt_ids(document: Mapping[str, Any], choice: Mapping[str, Any]) -> tuple[int, ...] | None:
    return ids_of(_either(document, choice, "prompt_token_ids"))


def _either(document: Mapping[str, Any], choice: Mapping[str, Any], name: str) -> Any:
    """Servers put what is of the prompt into the choice, or beside it."""
    return choice.get(name) if choice.get(name) is not None else document.get(name)


def _call(call: Any) -> ToolCall:
    return ToolCall(_text(call["function"]["name"]), _text(call["function"]["arguments"]))


def _context(document: Mapping[str, Any]) -> int | None:
    found = document.get("max_model_len") or document.get("context_length")
    return found if _is_count(found) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    value.encode()  # half of a surrogate pair is no text
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)
