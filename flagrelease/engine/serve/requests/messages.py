"""What Anthropic's Messages asks for, as far as this engine answers it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from flagrelease.engine.serve.requests.blocks import BlockMessage, CacheControl, Texts, as_messages, content
from flagrelease.engine.serve.requests.fields import Typed, done, neutral
from flagrelease.engine.serve.requests.protocol import MOST_STOPS, ChatRequest, StopString
from flagrelease.engine.serve.requests.refusals import ParameterError
from flagrelease.engine.serve.requests.translated import as_chat

PLACES = {
    r"messages[\w.\[\]]*": "messages",
    r"tools\[(\d+)\]\.function\.parameters": r"tools[\1].input_schema",
    r"tools\[(\d+)\]\.function": r"tools[\1]",
    r"tool_choice\.function": "tool_choice",
    r"parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    r"response_format\.json_schema": "output_config.format",
    r"response_format": "output_config.format",
    r"reasoning_effort": "output_config.effort",
    r"stop\b": "stop_sequences",
}
"""Where this interface has the parameters of a chat."""

_LEAST_BUDGET = 1024  # Anthropic's own limit


class InputTool(Typed):
    """A function that the model may call. Its input always streams as it comes."""

    type: Annotated[str, done("custom")] = "custom"
    name: str = Field(min_length=1)
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None
    allowed_callers: Annotated[Any, neutral(["direct"])] = None
    defer_loading: Annotated[Any, neutral(False)] = None
    input_examples: Annotated[Any, neutral([])] = None


class ToolUseChoice(Typed):
    """Which tools are called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _named(self) -> ToolUseChoice:
        if (self.type == "tool") != (self.name is not None):
            raise PydanticCustomError("tool_name", 'a name belongs to {type: "tool"}, and to no other')
        return self

    def as_chat(self) -> Any:
        """As chat completions say it."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return {"auto": "auto", "any": "required", "none": "none"}[self.type]


class ThinkingConfig(Typed):
    """Whether the model thinks first. A budget is checked and not enforced: `max_tokens` alone ends an answer."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = Field(None, ge=_LEAST_BUDGET)
    display: Annotated[Any, neutral("summarized")] = None

    @model_validator(mode="after")
    def _budgeted(self) -> ThinkingConfig:
        if (self.type == "enabled") != (self.budget_tokens is not None):
            raise PydanticCustomError("budget", 'budget_tokens belongs to {type: "enabled"}, and to no other')
        return self


class OutputFormat(Typed):
    """The form of the text."""

    type: Annotated[str, done("json_schema")]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Typed):
    """How the answer is written."""

    effort: str | None = None
    format: OutputFormat | None = None


class CountTokensRequest(Typed):
    """What decides the prompt: POST /v1/messages/count_tokens."""

    model: str
    messages: Annotated[list[BlockMessage], Field(min_length=1)]
    system: Texts | None = None
    tools: list[InputTool] = Field(default_factory=list)
    tool_choice: ToolUseChoice = Field(default_factory=lambda: ToolUseChoice(type="auto"))
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig = Field(default_factory=OutputConfig)
    # labels of a caller, hints to a cache, an order of service: no token depends on them
    cache_control: CacheControl | None = None
    # what is not done
    mcp_servers: Annotated[Any, neutral([])] = None
    context_management: Annotated[Any, neutral({})] = None

    def chat(self) -> ChatRequest:
        """The chat that it means.

        Raises:
            ParameterError: a chat does not take it.
        """
        system = [] if self.system is None else [{"role": "system", "content": content(self.system)}]
        return as_chat(system + as_messages(self.messages), self._parameters(), PLACES)

    def _parameters(self) -> dict[str, Any]:
        form = self.output_config.format
        schema = None if form is None else {"name": "output", "schema": form.schema_, "strict": True}
        return {
            "model": self.model,
            "tools": [_tool(tool) for tool in self.tools],
            "tool_choice": self.tool_choice.as_chat(),
            "parallel_tool_calls": not self.tool_choice.disable_parallel_tool_use,
            "response_format": None if schema is None else {"type": "json_schema", "json_schema": schema},
            "thinking": None if self.thinking is None else {"type": self.thinking.type},
            "reasoning_effort": self.output_config.effort,
        }


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=1)
    stop_sequences: list[StopString] = Field(default_factory=list, max_length=MOST_STOPS)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=2**31 - 1)
    stream: bool = False
    metadata: dict[str, Any] | None = None
    service_tier: Annotated[Any, neutral("auto", "standard_only")] = None
    speed: Annotated[Any, neutral("standard")] = None
    inference_geo: Annotated[Any, neutral()] = None
    container: Annotated[Any, neutral()] = None
    diagnostics: Annotated[Any, neutral()] = None
    user_profile_id: Annotated[Any, neutral()] = None

    def _parameters(self) -> dict[str, Any]:
        budget = None if self.thinking is None else self.thinking.budget_tokens
        if budget is not None and budget >= self.max_tokens:
            raise ParameterError(
                f"thinking.budget_tokens: {budget} must be less than max_tokens, which is {self.max_tokens}",
                "thinking.budget_tokens",
            )
        return {
            **super()._parameters(),
            "max_tokens": self.max_tokens,
            "stop": self.stop_sequences or None,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }


def _tool(tool: InputTool) -> dict[str, Any]:
    keys = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema, "strict": tool.strict}
    return {"type": "function", "function": {key: each for key, each in keys.items() if each is not None}}
