"""The form of chat messages, checked before they are encoded: what comes from a file or the network can be anything."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from flagrelease.errors import UsageError, first_problem
from flagrelease.model.v4.chat import Message


class _Part(BaseModel):
    type: str
    text: str | None = None


class _Function(BaseModel):
    name: str
    arguments: str


class _Call(BaseModel):
    id: str = ""
    function: _Function


class _Tool(BaseModel):
    function: dict[str, Any]


class _Message(BaseModel):
    model_config = ConfigDict(strict=True)

    role: str
    content: str | list[_Part] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    prefix: bool = False
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    tools: list[_Tool] | None = None
    response_format: dict[str, Any] | None = None
    task: str | None = None


_MESSAGES = TypeAdapter(list[_Message])


def check_messages(document: Any) -> list[Message]:
    """`document` itself, if it is a list of at least one message in OpenAI's form.

    Raises:
        UsageError: it is not; the message says where, as in "0.content: ...". An unknown role or a part that is not
            text is left to `encode_messages`.
    """
    try:
        checked = _MESSAGES.validate_python(document)
    except ValidationError as error:
        raise UsageError(f"not a list of chat messages: {first_problem(error)}") from error
    if not checked:
        raise UsageError("not a list of chat messages: it is empty")
    messages: list[Message] = document
    return messages
