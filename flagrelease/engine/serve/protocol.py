"""What OpenAI's completions and chat completions ask for, as far as this engine answers it.

A parameter that is not here is refused by name: one that were ignored would change what the caller believes was run.
The parameters of `Accepted` are taken at the values that change no answer, because common clients send those.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Discriminator, Field, Tag, WrapValidator

from flagrelease.engine.sampling import Sampling
from flagrelease.engine.serve.conversation import ENCODED, ChatMessage, Tool
from flagrelease.engine.serve.fields import Typed, as_sent, done, neutral
from flagrelease.engine.serve.refusals import ParameterError
from flagrelease.model.v4.chat import Message, Mode

MOST_LOGPROBS, MOST_STOPS, LONGEST_STOP = 20, 16, 256


class StreamOptions(Typed):
    """Of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: Annotated[Any, neutral(False)] = None


class Thinking(Typed):
    """DeepSeek's switch between its modes."""

    type: Literal["enabled", "disabled"]


class Accepted(Typed):
    """Parameters of both endpoints that are taken only where they change no answer."""

    # labels of a caller, hints to a cache, an order of service: no token depends on them
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    store: Annotated[Any, neutral(False)] = None
    service_tier: Annotated[Any, neutral("auto", "default")] = None
    priority: Annotated[Any, neutral(0)] = None
    # sampling that is not done
    frequency_penalty: Annotated[Any, neutral(0)] = None
    presence_penalty: Annotated[Any, neutral(0)] = None
    repetition_penalty: Annotated[Any, neutral(1)] = None
    length_penalty: Annotated[Any, neutral(1)] = None
    logit_bias: Annotated[Any, neutral({}, [])] = None
    top_k: Annotated[Any, neutral(-1, 0)] = None
    min_p: Annotated[Any, neutral(0)] = None
    use_beam_search: Annotated[Any, neutral(False)] = None
    min_tokens: Annotated[Any, neutral(0)] = None
    ignore_eos: Annotated[Any, neutral(False)] = None
    stop_token_ids: Annotated[Any, neutral([])] = None
    bad_words: Annotated[Any, neutral([])] = None
    allowed_token_ids: Annotated[Any, neutral()] = None
    logits_processors: Annotated[Any, neutral([])] = None
    # forms of the answer that are not done
    prompt_logprobs: Annotated[Any, neutral()] = None
    truncate_prompt_tokens: Annotated[Any, neutral()] = None
    include_stop_str_in_output: Annotated[Any, neutral(False)] = None
    skip_special_tokens: Annotated[Any, neutral(False)] = None
    spaces_between_special_tokens: Annotated[Any, neutral(False, True)] = None
    return_token_ids: Annotated[Any, neutral(False)] = None
    return_tokens_as_token_ids: Annotated[Any, neutral(False)] = None
    response_format: Annotated[Any, neutral({"type": "text"})] = None
    structured_outputs: Annotated[Any, neutral()] = None
    guided_json: Annotated[Any, neutral()] = None
    guided_regex: Annotated[Any, neutral()] = None
    guided_choice: Annotated[Any, neutral()] = None
    guided_grammar: Annotated[Any, neutral()] = None


def _kind_of_stop(value: Any) -> str | None:
    return "one" if isinstance(value, str) else "several" if isinstance(value, list) else None


StopString = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Stop = Annotated[
    Annotated[StopString, Tag("one")] | Annotated[list[StopString], Field(max_length=MOST_STOPS), Tag("several")],
    Discriminator(
        _kind_of_stop,
        custom_error_type="stop_type",
        custom_error_message="Input should be a string or a list of strings",
    ),
]


class GenerationRequest(Accepted):
    """What both endpoints share."""

    model: str
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None
    max_tokens: int | None = Field(None, ge=0)
    stop: Stop | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, done(1)] = 1

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


def _kind_of_prompt(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    return "texts" if isinstance(first, str) else "several" if isinstance(first, list) else "tokens"


Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(min_length=1), Tag("texts")]
    | Annotated[list[int], Tag("tokens")]
    | Annotated[list[list[int]], Tag("several")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt_type",
        custom_error_message="Input should be text, a list of texts, token ids, or a list of lists of token ids",
    ),
]


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. Prompts are text or token ids, one or several."""

    prompt: Prompt
    max_tokens: int | None = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    echo: bool = False
    best_of: Annotated[Any, neutral(1)] = None
    suffix: Annotated[Any, neutral("")] = None
    add_special_tokens: Annotated[Any, neutral(False)] = None


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1), WrapValidator(as_sent)]
    tools: Annotated[list[Tool], WrapValidator(as_sent)] = Field(default_factory=list)
    tool_choice: Annotated[Any, done("auto", "none")] = "auto"
    parallel_tool_calls: Annotated[Any, neutral(True)] = None
    functions: Annotated[Any, neutral([])] = None
    function_call: Annotated[Any, neutral("auto", "none")] = None
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    thinking: Thinking | None = None
    reasoning_effort: Literal["none", "low", "medium", "high", "max"] | None = None
    verbosity: Annotated[Any, neutral("medium")] = None
    modalities: Annotated[Any, neutral(["text"])] = None
    audio: Annotated[Any, neutral()] = None
    prediction: Annotated[Any, neutral()] = None
    web_search_options: Annotated[Any, neutral()] = None
    echo: Annotated[Any, neutral(False)] = None
    add_generation_prompt: Annotated[Any, neutral(True)] = None
    continue_final_message: Annotated[Any, neutral(False)] = None
    add_special_tokens: Annotated[Any, neutral(False)] = None
    include_reasoning: Annotated[Any, neutral(True)] = None
    separate_reasoning: Annotated[Any, neutral(True)] = None
    stream_reasoning: Annotated[Any, neutral(True)] = None
    chat_template: Annotated[Any, neutral()] = None
    chat_template_kwargs: Annotated[Any, neutral({})] = None
    documents: Annotated[Any, neutral([])] = None

    @property
    def conversation(self) -> list[Message]:
        """The messages as they were sent, without nulls and without what the encoding does not read."""
        return [_encoded(message) for message in cast(list[Message], self.messages)]

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """The tools as they were sent, if the model may call them."""
        return cast(list[dict[str, Any]], self.tools) if self.tool_choice == "auto" else []

    def limit(self) -> int | None:
        """Tokens that the answer may have: the smaller of both parameters."""
        return min((n for n in (self.max_tokens, self.max_completion_tokens) if n is not None), default=None)

    def scores(self) -> int | None:
        """How many alternatives are reported with each token; None: no log-probabilities.

        Raises:
            ParameterError: alternatives are asked for, but no log-probabilities.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise ParameterError("top_logprobs needs logprobs", "top_logprobs")
        return self.top_logprobs or 0 if self.logprobs else None

    def mode(self, default: Mode) -> Mode:
        """`thinking` and `reasoning_effort`, where given, else the server's.

        Raises:
            ParameterError: they contradict each other.
        """
        effort = {None: None, "none": "chat", "low": "thinking", "medium": "thinking", "high": "thinking", "max": "max"}
        switch = None if self.thinking is None else self.thinking.type == "enabled"
        wanted = effort[self.reasoning_effort]
        if switch is not None and wanted is not None and switch != (wanted != "chat"):
            raise ParameterError(
                f"thinking is {'en' if switch else 'dis'}abled, but reasoning_effort is {self.reasoning_effort}",
                "reasoning_effort",
            )
        if wanted is not None:
            return "chat" if wanted == "chat" else "max" if wanted == "max" else "thinking"
        return default if switch is None else "thinking" if switch else "chat"


def _encoded(message: Message) -> Message:
    kept = {key: value for key, value in message.items() if key in ENCODED and value is not None}
    if reasoning := kept.pop("reasoning", ""):  # the same under vLLM's newer name
        kept.setdefault("reasoning_content", reasoning)
    return kept
