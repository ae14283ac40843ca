"""The messages of Anthropic's interface: blocks by role, and the messages of a chat that they stand for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from flagrelease.engine.serve.requests.fields import Typed, neutral, text_or
from flagrelease.model.v4.chat import Message

CacheControl = dict[str, Any]  # a hint to caches


class TextBlock(Typed):
    """Text of any role."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Annotated[Any, neutral([])] = None


class ThinkingBlock(Typed):
    """What the assistant thought. Nothing is signed here, so a signature says nothing."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(Typed):
    """A call that the assistant made."""

    type: Literal["tool_use"]
    id: str
    name: str = Field(min_length=1)
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: Annotated[Any, neutral({"type": "direct"})] = None
    toolset_name: Annotated[Any, neutral()] = None


def _discriminator(*types: str) -> Discriminator:
    """By `type`, one of those that are read."""

    def kind(value: Any) -> str | None:
        found = value.get("type") if isinstance(value, dict) else None
        return found if isinstance(found, str) and found in types else None

    words = f"Input should be a block of one of the types {', '.join(types)}; no other is read here"
    return Discriminator(kind, custom_error_type="block_type", custom_error_message=words)


Texts = Annotated[Annotated[str, Tag("text")] | Annotated[list[TextBlock], Tag("blocks")], text_or("blocks")]


class ToolResultBlock(Typed):
    """What a call gave. The model is not shown `is_error`: DeepSeek's encoding has no place for it."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts | None = None
    is_error: bool = False
    cache_control: CacheControl | None = None
    toolset_name: Annotated[Any, neutral()] = None


_UserBlock = Annotated[
    Annotated[TextBlock, Tag("text")] | Annotated[ToolResultBlock, Tag("tool_result")],
    _discriminator("text", "tool_result"),
]
_ReplyBlock = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")],
    _discriminator("text", "thinking", "tool_use"),
]


class UserMessage(Typed):
    """Of the user, with what the calls gave."""

    role: Literal["user"]
    content: Annotated[Annotated[str, Tag("text")] | Annotated[list[_UserBlock], Tag("blocks")], text_or("blocks")]


class AssistantMessage(Typed):
    """Of the assistant. The last message of a conversation is continued if it is one."""

    role: Literal["assistant"]
    content: Annotated[Annotated[str, Tag("text")] | Annotated[list[_ReplyBlock], Tag("blocks")], text_or("blocks")]


class SystemMessage(Typed):
    """Of the system, between the others."""

    role: Literal["system"]
    content: Texts


def _role(value: Any) -> str | None:
    role = value.get("role") if isinstance(value, dict) else None
    return role if isinstance(role, str) and role in ("user", "assistant", "system") else None


BlockMessage = Annotated[
    Annotated[UserMessage, Tag("user")]
    | Annotated[AssistantMessage, Tag("assistant")]
    | Annotated[SystemMessage, Tag("system")],
    Discriminator(
        _role,
        custom_error_type="message_role",
        custom_error_message="Input should be an object with a role; known roles are user, assistant, system",
    ),
]


def as_messages(messages: Sequence[UserMessage | AssistantMessage | SystemMessage]) -> list[Message]:
    """The messages of a chat."""
    shown: list[Message] = []
    for n, message in enumerate(messages):
        if isinstance(message, UserMessage):
            shown += _asked(message)
        elif isinstance(message, SystemMessage):
            shown.append({"role": "system", "content": content(message.content)})
        else:
            shown.append(_replied(message) | ({"prefix": True} if n + 1 == len(messages) else {}))
    return shown


def _asked(message: UserMessage) -> list[Message]:
    """Texts beside each other are parts of one message, and each result is a message, in the order of the blocks."""
    if isinstance(message.content, str):
        return [{"role": "user", "content": message.content}]
    shown: list[Message] = []
    for is_text, group in groupby(message.content, key=lambda block: isinstance(block, TextBlock)):
        blocks = list(group)
        if is_text:
            shown.append({"role": "user", "content": _parts(each for each in blocks if isinstance(each, TextBlock))})
        shown += [_result(block) for block in blocks if isinstance(block, ToolResultBlock)]
    return shown or [{"role": "user", "content": ""}]


def _result(block: ToolResultBlock) -> Message:
    said = "" if block.content is None else content(block.content)
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": said}


def _replied(message: AssistantMessage) -> Message:
    if isinstance(message.content, str):
        return {"role": "assistant", "content": message.content}
    shown: Message = {"role": "assistant", "content": ""}
    texts = [block for block in message.content if isinstance(block, TextBlock)]
    thoughts = [block.thinking for block in message.content if isinstance(block, ThinkingBlock)]
    calls = [block for block in message.content if isinstance(block, ToolUseBlock)]
    if texts:
        shown["content"] = "".join(block.text for block in texts)
    if thoughts:
        shown["reasoning_content"] = "\n\n".join(thoughts)
    if calls:
        shown["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call.input)}}
            for call in calls
        ]
    return shown


def _arguments(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)


def content(texts: str | Iterable[TextBlock]) -> str | list[dict[str, str]]:
    """As a chat has it."""
    return texts if isinstance(texts, str) else _parts(texts)


def _parts(blocks: Iterable[TextBlock]) -> list[dict[str, str]]:
    return [{"type": "text", "text": block.text} for block in blocks]
