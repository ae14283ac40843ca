"""What OpenAI's completions and chat completions ask for, as far as this engine answers it.

A parameter that is not here is refused by name: one that were ignored would change what the caller believes was run.
The parameters of `Accepted` are taken at the values that change no answer, because common clients send those.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field, Tag

from flagrelease.engine.constraints.constraint import Constraint
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.serve.requests.fields import Typed, neutral, text_or
from flagrelease.engine.serve.requests.formats import Formed
from flagrelease.engine.serve.requests.prompts import Conversation, Prompts
from flagrelease.engine.serve.requests.refusals import ParameterError
from flagrelease.engine.text import Tokenizer

MOST_LOGPROBS, MOST_STOPS, LONGEST_STOP, MOST_CHOICES = 20, 16, 256, 128


@dataclass(frozen=True, slots=True)
class Shown:
    """How an answer shows tokens: by id where others have their text; the ids of prompt and answer beside them."""

    as_ids: bool = False
    ids: bool = False


class StreamOptions(Typed):
    """Of a streamed answer."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Annotated[Any, neutral(False)] = None


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
    length_penalty: Annotated[Any, neutral(1)] = None
    use_beam_search: Annotated[Any, neutral(False)] = None
    logits_processors: Annotated[Any, neutral([])] = None
    # forms of the answer that are not done
    truncate_prompt_tokens: Annotated[Any, neutral()] = None
    include_stop_str_in_output: Annotated[Any, neutral(False)] = None
    skip_special_tokens: Annotated[Any, neutral(False, True)] = None
    spaces_between_special_tokens: Annotated[Any, neutral(False, True)] = None


def _seed(seed: int | None, choice: int) -> int | None:
    """Choices of a prompt differ, and the same seed gives the same ones again."""
    if seed is None:
        return None
    return int.from_bytes(hashlib.blake2b(f"{seed}/choice {choice}".encode(), digest_size=8).digest(), "little")


def _runs(word: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The tokens of a word at a text's beginning, and behind a space where they are as many, as vLLM bans it."""
    if not word.strip():
        raise ParameterError(f"bad_words: {word!r} is no word", "bad_words")
    plain, spaced = (tuple(tokenizer.encode(space + word.lstrip())) for space in ("", " "))
    return [plain, spaced] if len(plain) == len(spaced) and plain[0] != spaced[0] else [plain]


StopString = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Stop = Annotated[
    Annotated[StopString, Tag("text")] | Annotated[list[StopString], Field(max_length=MOST_STOPS), Tag("strings")],
    text_or("strings"),
]


TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenName = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


class GenerationRequest(Accepted, Formed):
    """What both endpoints share."""

    model: str
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None
    max_tokens: int | None = Field(None, ge=0)
    stop: Stop | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    top_k: int = Field(0, ge=-1, le=2**31 - 1)
    min_p: float = Field(0.0, ge=0, le=1)
    logit_bias: dict[TokenName, Bias] = Field(default_factory=dict)
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0)
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=MOST_STOPS)
    allowed_token_ids: list[TokenId] | None = Field(None, min_length=1)
    prompt_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    return_tokens_as_token_ids: bool = False
    return_token_ids: bool = False
    bad_words: list[StopString] = Field(default_factory=list, max_length=MOST_STOPS)

    def samplings(
        self,
        logprobs: int | None,
        max_tokens: int | None,
        tokenizer: Tokenizer,
        constraint: Constraint | None,
        *,
        echo: bool = False,
    ) -> list[Sampling]:
        """As the scheduler takes it, for each of the `n` choices of a prompt.

        Raises:
            UsageError: a value out of range.
            ParameterError: the prompt's log-probabilities are to be streamed.
        """
        if self.prompt_logprobs is not None and self.stream:
            raise ParameterError("prompt_logprobs cannot be streamed", "prompt_logprobs")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        first = Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            seed=self.seed,
            max_tokens=max_tokens,
            stop=stop,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
            echo=echo,
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            logit_bias=tuple((int(token), value) for token, value in self.logit_bias.items()),
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_penalty=self.repetition_penalty,
            stop_token_ids=tuple(self.stop_token_ids),
            allowed_token_ids=None if self.allowed_token_ids is None else tuple(self.allowed_token_ids),
            bad_words=tuple(run for word in self.bad_words for run in _runs(word, tokenizer)),
            constraint=constraint,
        )
        return [first, *(replace(first, seed=_seed(self.seed, n)) for n in range(1, self.n))]

    @property
    def shown(self) -> Shown:
        """How tokens are shown in the answer."""
        return Shown(self.return_tokens_as_token_ids, self.return_token_ids)

    @property
    def streaming(self) -> StreamOptions:
        """`stream_options`, or what holds without."""
        return self.stream_options or StreamOptions()


class CompletionRequest(GenerationRequest, Prompts):
    """POST /v1/completions. Prompts are text or token ids, one or several."""

    max_tokens: int | None = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    echo: bool = False
    best_of: Annotated[Any, neutral(1)] = None
    suffix: Annotated[Any, neutral("")] = None
    add_special_tokens: Annotated[Any, neutral(False)] = None


class ChatRequest(GenerationRequest, Conversation):
    """POST /v1/chat/completions."""

    parallel_tool_calls: bool = True
    functions: Annotated[Any, neutral([])] = None
    function_call: Annotated[Any, neutral("auto", "none")] = None
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    verbosity: Annotated[Any, neutral("medium")] = None
    modalities: Annotated[Any, neutral(["text"])] = None
    audio: Annotated[Any, neutral()] = None
    prediction: Annotated[Any, neutral()] = None
    web_search_options: Annotated[Any, neutral()] = None
    echo: Annotated[Any, neutral(False)] = None
    add_special_tokens: Annotated[Any, neutral(False)] = None
    include_reasoning: Annotated[Any, neutral(True)] = None
    separate_reasoning: Annotated[Any, neutral(True)] = None
    stream_reasoning: Annotated[Any, neutral(True)] = None
    chat_template: Annotated[Any, neutral()] = None
    chat_template_kwargs: Annotated[Any, neutral({})] = None
    documents: Annotated[Any, neutral([])] = None

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
