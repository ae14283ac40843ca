"""What a chat request says of the conversation: messages by role, content parts, tool calls, tools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from flagrelease.engine.serve.requests.fields import Typed, done, neutral, shown, text_or
from flagrelease.model.v4.chat import TASKS

ENCODED = (
    "role", "content", "reasoning_content", "reasoning", "tool_calls", "tool_call_id", "tools", "response_format",
    "task", "prefix",
)  # fmt: skip
"""The keys of a message that its encoding reads. The others that are accepted change no prompt."""


def _text_only(kind: str) -> str:
    if kind != "text":
        raise PydanticCustomError(
            "not_text", "a part of type {kind}: this model reads parts of type 'text' only", {"kind": shown(kind)}
        )
    return kind


def _task(name: str) -> str:
    if name not in TASKS:
        raise PydanticCustomError(
            "unknown_task", "{name} is unknown; known are {known}", {"name": shown(name), "known": ", ".join(TASKS)}
        )
    return name


class TextPart(Typed):
    """A part of a content. `cache_control` is a hint to caches."""

    type: Annotated[str, AfterValidator(_text_only)]
    text: str
    cache_control: dict[str, Any] | None = None


Content = Annotated[Annotated[str, Tag("text")] | Annotated[list[TextPart], Tag("parts")], text_or("parts")]


class CalledFunction(Typed):
    """What a call of the history called. `arguments` is JSON text, as far as the model wrote some."""

    name: str = Field(min_length=1)
    arguments: str


class Call(Typed):
    """A tool call of the history. `index` is left in by clients that put streamed calls together."""

    id: str | None = None
    type: Annotated[str, done("function")] = "function"
    function: CalledFunction
    index: int | None = None


class Function(Typed):
    """A function that the model may call; `parameters` is a JSON schema, to which `strict` holds its calls.

    Its name stands between quotes in a call.
    """

    name: str = Field(min_length=1, max_length=128, pattern="^[a-zA-Z0-9_-]+$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Typed):
    """A tool in the form of chat completions."""

    type: Annotated[str, done("function")] = "function"
    function: Function
    cache_control: dict[str, Any] | None = None


def _names_differ(tools: list[Tool]) -> list[Tool]:
    seen: set[str] = set()
    for tool in tools:
        name = tool.function.name
        if name in seen:
            raise PydanticCustomError(
                "tool_twice", "two tools have the name {name}: a call could mean either", {"name": shown(name)}
            )
        seen.add(name)
    return tools


Tools = Annotated[list[Tool], AfterValidator(_names_differ)]


class _Message(Typed):
    """What every role may have. `name` is not shown to the model, as in DeepSeek's encoding."""

    name: str | None = None


class Instructions(_Message):
    """Of the system or a developer, with DeepSeek's extensions."""

    role: Literal["system", "developer"]
    content: Content
    tools: Tools | None = None
    response_format: dict[str, Any] | None = None


class Reminder(_Message):
    """DeepSeek's role for what a client reminds the model of."""

    role: Literal["latest_reminder"]
    content: Content


class Question(_Message):
    """Of the user."""

    role: Literal["user"]
    content: Content
    task: Annotated[str, AfterValidator(_task)] | None = None


class Reply(_Message):
    """Of the assistant, with what OpenAI's client keeps of an answer (`refusal`, `annotations`, ...)."""

    role: Literal["assistant"]
    content: Content | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Call] | None = None
    prefix: bool = False
    refusal: Annotated[Any, neutral("")] = None
    annotations: Annotated[Any, neutral([])] = None
    audio: Annotated[Any, neutral()] = None
    function_call: Annotated[Any, neutral()] = None


class Result(_Message):
    """Of a tool."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str | None = None


_ROLES = {
    "system": "instructions", "developer": "instructions", "latest_reminder": "reminder", "user": "question",
    "assistant": "reply", "tool": "result",
}  # fmt: skip


def _role(value: Any) -> str | None:
    role = value.get("role") if isinstance(value, dict) else None
    return _ROLES.get(role) if isinstance(role, str) else None


ChatMessage = Annotated[
    Annotated[Instructions, Tag("instructions")]
    | Annotated[Reminder, Tag("reminder")]
    | Annotated[Question, Tag("question")]
    | Annotated[Reply, Tag("reply")]
    | Annotated[Result, Tag("result")],
    Discriminator(
        _role,
        custom_error_type="message_role",
        custom_error_message=f"Input should be an object with a role; known roles are {', '.join(_ROLES)}",
    ),
]
