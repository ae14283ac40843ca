"""The input of OpenAI's Responses: items, and the messages of a chat that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from flagrelease.engine.serve.requests.fields import Typed, done, neutral, text_or
from flagrelease.model.v4.chat import Message

_TEXTS = ("input_text", "output_text", "text")


class ItemText(Typed):
    """A part of a content. What clients keep of an answer beside its text is not shown to the model."""

    type: Annotated[str, done(*_TEXTS)]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


ItemContent = Annotated[Annotated[str, Tag("text")] | Annotated[list[ItemText], Tag("parts")], text_or("parts")]


class _Item(Typed):
    """What every item may have, which the model is not shown."""

    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class MessageItem(_Item):
    """A message of either side."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: ItemContent
    phase: str | None = None


class CallItem(_Item):
    """A call that the model made. `arguments` is JSON text, as far as the model wrote some."""

    type: Literal["function_call"]
    call_id: str
    name: str = Field(min_length=1)
    arguments: str
    caller: Annotated[Any, neutral({"type": "direct"})] = None
    namespace: Annotated[Any, neutral()] = None


class OutputItem(_Item):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: ItemContent
    name: str | None = None
    caller: Annotated[Any, neutral({"type": "direct"})] = None
    namespace: Annotated[Any, neutral()] = None


class ReasoningText(Typed):
    """A part of a reasoning."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(_Item):
    """What the model thought; a summary stands for it where there is nothing else."""

    type: Literal["reasoning"]
    content: list[ReasoningText] = Field(default_factory=list)
    summary: list[ReasoningText] = Field(default_factory=list)
    encrypted_content: Annotated[Any, neutral("")] = None


_TYPES = ("message", "function_call", "function_call_output", "reasoning")


def _type(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    kind = value.get("type", "message")
    return kind if kind in _TYPES else None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _type,
        custom_error_type="item_type",
        custom_error_message=f"Input should be an item of one of the types {', '.join(_TYPES)}; no other is read here",
    ),
]


# By part of an assistant's message: what it cannot follow, since a message has reasoning, text and calls in this order.
_CLOSING = {
    "reasoning_content": ("reasoning_content", "content", "tool_calls"),
    "content": ("content", "tool_calls"),
}


def as_messages(items: Sequence[MessageItem | CallItem | OutputItem | ReasoningItem]) -> list[Message]:
    """The messages of a chat. Reasoning, text and calls that follow each other are one message of the assistant."""
    messages: list[Message] = []
    reply: Message | None = None  # the assistant's, while more may belong to it
    for item in items:
        part = _part_of_reply(item)
        if part is None:
            reply = None
            messages.append(_message(item))
            continue
        key, value = part
        if reply is None or (key != "tool_calls" and any(later in reply for later in _CLOSING[key])):
            reply = {"role": "assistant"}
            messages.append(reply)
        if key == "tool_calls":
            reply.setdefault(key, []).append(value)
        else:
            reply[key] = value
    return messages


def _part_of_reply(item: MessageItem | CallItem | OutputItem | ReasoningItem) -> tuple[str, Any] | None:
    if isinstance(item, ReasoningItem):
        return "reasoning_content", "\n\n".join(part.text for part in item.content or item.summary)
    if isinstance(item, CallItem):
        function = {"name": item.name, "arguments": item.arguments}
        return "tool_calls", {"id": item.call_id, "type": "function", "function": function}
    if isinstance(item, MessageItem) and item.role == "assistant":
        return "content", _content(item.content)
    return None


def _message(item: MessageItem | CallItem | OutputItem | ReasoningItem) -> Message:
    if isinstance(item, OutputItem):
        return {"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)}
    assert isinstance(item, MessageItem)
    return {"role": item.role, "content": _content(item.content)}


def _content(content: str | list[ItemText]) -> str | list[dict[str, str]]:
    return content if isinstance(content, str) else [{"type": "text", "text": part.text} for part in content]
