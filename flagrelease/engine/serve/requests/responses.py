"""What OpenAI's Responses asks for, as far as this engine answers it. Nothing is kept from one request to the next."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from flagrelease.engine.serve.requests.fields import Typed, done, neutral, shown, text_or
from flagrelease.engine.serve.requests.items import Item, as_messages
from flagrelease.engine.serve.requests.protocol import ChatRequest
from flagrelease.engine.serve.requests.translated import as_chat
from flagrelease.model.v4.chat import Message

PLACES = {
    r"messages[\w.\[\]]*": "input",
    r"tools\[(\d+)\]\.function": r"tools[\1]",
    r"tool_choice\.function": "tool_choice",
    r"response_format\.json_schema": "text.format",
    r"response_format": "text.format",
    r"reasoning_effort|thinking": "reasoning.effort",
    r"max_tokens|max_completion_tokens": "max_output_tokens",
}
"""Where this interface has the parameters of a chat."""


class FunctionTool(Typed):
    """A function that the model may call."""

    type: Annotated[str, done("function")]
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    allowed_callers: Annotated[Any, neutral(["direct"])] = None
    defer_loading: Annotated[Any, neutral(False)] = None
    output_schema: Annotated[Any, neutral()] = None


class ChosenFunction(Typed):
    """The one function to be called."""

    type: Annotated[str, done("function")]
    name: str


def _kind_of_choice(value: Any) -> str:
    return "function" if isinstance(value, dict) else "word"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")] | Annotated[ChosenFunction, Tag("function")],
    Discriminator(_kind_of_choice),
]


class TextFormat(Typed):
    """The form of the text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    def as_chat(self) -> dict[str, Any]:
        """As chat completions name it."""
        if self.type != "json_schema":
            return {"type": self.type}
        keys = {"name": self.name, "description": self.description, "schema": self.schema_, "strict": self.strict}
        return {"type": self.type, "json_schema": {key: each for key, each in keys.items() if each is not None}}


class Text(Typed):
    """How the text is written."""

    format: TextFormat | None = None
    verbosity: Annotated[Any, neutral("medium")] = None


class Reasoning(Typed):
    """How the model thinks. Its reasoning is told in full, so "auto" asks for no summary of it."""

    effort: str | None = None
    summary: Annotated[Any, neutral("auto")] = None
    generate_summary: Annotated[Any, neutral("auto")] = None
    context: Annotated[Any, neutral("auto")] = None
    mode: Annotated[Any, neutral("standard")] = None


class ResponseStreamOptions(Typed):
    """Of a streamed answer."""

    include_obfuscation: Annotated[Any, neutral(False)] = None


_INCLUDABLE = "reasoning.encrypted_content"  # asked for by clients that keep nothing; reasoning is not encrypted here


def _included(names: list[str]) -> list[str]:
    for name in names:
        if name != _INCLUDABLE:
            raise PydanticCustomError(
                "unsupported_value", '{shown} is not supported here; only "{known}" is accepted, which changes nothing',
                {"shown": shown(name), "known": _INCLUDABLE},
            )  # fmt: skip
    return names


class ResponsesRequest(Typed):
    """POST /v1/responses."""

    model: str
    input: Annotated[
        Annotated[str, Tag("text")] | Annotated[list[Item], Field(min_length=1), Tag("items")],
        text_or("items"),
    ]
    instructions: str | None = None
    tools: list[FunctionTool] = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    text: Text = Field(default_factory=Text)
    reasoning: Reasoning = Field(default_factory=Reasoning)
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    stream: bool = False
    # labels of a caller, hints to a cache, an order of service: no token depends on them
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: Annotated[Any, neutral("auto", "default")] = None
    max_tool_calls: int | None = None  # counts calls of tools that a server runs, and none are run here
    stream_options: ResponseStreamOptions | None = None
    include: Annotated[list[str], AfterValidator(_included)] = Field(default_factory=list)
    # what would need answers to be kept
    store: Annotated[Any, neutral(False)] = None
    previous_response_id: Annotated[Any, neutral()] = None
    conversation: Annotated[Any, neutral()] = None
    background: Annotated[Any, neutral(False)] = None
    background_options: Annotated[Any, neutral()] = None
    prompt: Annotated[Any, neutral()] = None
    # what is not done
    top_logprobs: Annotated[Any, neutral(0)] = None
    truncation: Annotated[Any, neutral("disabled")] = None
    context_management: Annotated[Any, neutral([])] = None
    moderation: Annotated[Any, neutral()] = None
    access_programs: Annotated[Any, neutral()] = None
    image: Annotated[Any, neutral()] = None

    def chat(self) -> ChatRequest:
        """The chat that it means.

        Raises:
            ParameterError: a chat does not take it.
        """
        messages: list[Message] = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            messages += as_messages(self.input)
        choice: Any = self.tool_choice
        if isinstance(choice, ChosenFunction):
            choice = {"type": "function", "function": {"name": choice.name}}
        parameters = {
            "model": self.model,
            "tools": [_tool(tool) for tool in self.tools],
            "tool_choice": choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": None if self.text.format is None else self.text.format.as_chat(),
            "reasoning_effort": self.reasoning.effort,
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        return as_chat(messages, parameters, PLACES)


def _tool(tool: FunctionTool) -> dict[str, Any]:
    sent = tool.model_dump(include={"name", "description", "parameters", "strict"}, exclude_none=True)
    return {"type": "function", "function": sent}
