"""What OpenAI's completions and chat completions ask for, as far as this engine answers it.

A parameter that is not here is refused by name: one that were ignored would change what the caller believes was run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flagrelease.engine.sampling import Sampling
from flagrelease.errors import UsageError
from flagrelease.model.v4.chat import Mode


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(_Request):
    """Of a streamed answer."""

    include_usage: bool = False


class Thinking(_Request):
    """DeepSeek's switch between its modes."""

    type: Literal["enabled", "disabled"]


class GenerationRequest(_Request):
    """What both endpoints share. `user` and `store` are accepted because they change no token."""

    model: str
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    user: str | None = None
    store: Literal[False] | None = None

    def sampling(self, logprobs: int | None, max_tokens: int | None, *, echo: bool = False) -> Sampling:
        """As the scheduler takes it.

        Raises:
            UsageError: a value out of range.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(self.temperature, self.top_p, self.seed, max_tokens, stop, logprobs, echo)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. Prompts are text or token ids, one or several."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = 16
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool = False


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] = []
    tool_choice: Literal["auto", "none"] = "auto"
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    thinking: Thinking | None = None
    reasoning_effort: Literal["none", "low", "medium", "high", "max"] | None = None

    def mode(self, default: Mode) -> Mode:
        """`thinking` and `reasoning_effort`, where given, else the server's.

        Raises:
            UsageError: they contradict each other.
        """
        effort = {None: None, "none": "chat", "low": "thinking", "medium": "thinking", "high": "thinking", "max": "max"}
        switch = None if self.thinking is None else self.thinking.type == "enabled"
        wanted = effort[self.reasoning_effort]
        if switch is not None and wanted is not None and switch != (wanted != "chat"):
            raise UsageError(
                f"thinking is {'en' if switch else 'dis'}abled, but reasoning_effort is {self.reasoning_effort}"
            )
        if wanted is not None:
            return "chat" if wanted == "chat" else "max" if wanted == "max" else "thinking"
        return default if switch is None else "thinking" if switch else "chat"
