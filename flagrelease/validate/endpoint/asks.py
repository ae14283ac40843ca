"""What an endpoint is asked. A field that is None, False or empty is not sent, so that the server's default holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flagrelease.model.v4.efforts import Effort
from flagrelease.validate.endpoint.address import Dialect


@dataclass(frozen=True, slots=True)
class ChatAsk:
    """A chat that the model continues once.

    Attributes:
        messages: as OpenAI's interface has them.
        max_tokens: of the answer with its reasoning.
        effort: how much the model thinks first; None: nothing is said of it. Servers have defaults of their own, so the
            effort is named even where it is the model's default.
        tools, tool_choice, response_format: as OpenAI's interface has them.
        logprobs: how many alternatives are wanted beside the log-probability of each token, 0 to 20; None: neither.
        prompt_logprobs: the same for the tokens of the prompt, in vLLM's form.
        token_ids: whether ids of the prompt's and the answer's tokens are wanted, where a server can give them.
        stop: texts that end the answer.
        extra: further fields of the request, such as a vendor's own; they replace those above of the same name.
    """

    messages: tuple[Mapping[str, Any], ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    effort: Effort | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str | Mapping[str, Any] | None = None
    response_format: Mapping[str, Any] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    token_ids: bool = False
    stop: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def body(self, model: str, dialect: Dialect) -> dict[str, Any]:
        """The JSON document of the request, which is not streamed."""
        wanted = {} if self.logprobs is None else {"logprobs": True, "top_logprobs": self.logprobs}
        return {
            "model": model,
            "messages": [dict(message) for message in self.messages],
            "temperature": self.temperature,
            "top_p": self.top_p,
            **_given(seed=self.seed),
            "max_tokens": self.max_tokens,
            **({} if self.effort is None else switch(self.effort, dialect)),
            **_given(tools=list(self.tools) or None, tool_choice=self.tool_choice),
            **_given(response_format=self.response_format, stop=list(self.stop) or None),
            **wanted,
            **_given(prompt_logprobs=self.prompt_logprobs, return_token_ids=self.token_ids or None),
            **self.extra,
        }


@dataclass(frozen=True, slots=True)
class CompletionAsk:
    """A text, or the ids of its tokens, that the model continues once: without any chat format.

    Attributes:
        max_tokens: of the continuation; with 0 the prompt is only scored, which some servers refuse: ask for 1 then.
        echo: whether text and log-probabilities of the prompt come back before those of the continuation (OpenAI's old
            way to score a prompt).
        logprobs: how many alternatives are wanted beside each token's log-probability; None: neither. With `echo`
            SGLang gives the prompt's only if this is 1 or more.
        prompt_logprobs: the same for the prompt's tokens, in vLLM's form (`flagrelease serve` has it too).
        token_ids: as in `ChatAsk`.
        extra: as in `ChatAsk`.
    """

    prompt: str | tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    echo: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    token_ids: bool = False
    stop: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def body(self, model: str, dialect: Dialect) -> dict[str, Any]:
        """The JSON document of the request; the dialect changes nothing here."""
        return {
            "model": model,
            "prompt": self.prompt if isinstance(self.prompt, str) else list(self.prompt),
            "temperature": self.temperature,
            "top_p": self.top_p,
            **_given(seed=self.seed),
            "max_tokens": self.max_tokens,
            **_given(echo=self.echo or None, logprobs=self.logprobs, prompt_logprobs=self.prompt_logprobs),
            **_given(return_token_ids=self.token_ids or None, stop=list(self.stop) or None),
            **self.extra,
        }


def switch(effort: Effort, dialect: Dialect) -> dict[str, Any]:
    """What a request says beyond OpenAI's fields, so that the model thinks as `effort` says."""
    named = {"reasoning_effort": effort.name} if effort.thinks else {}
    if dialect == "template":
        return {"chat_template_kwargs": {"thinking": effort.thinks, **named}}
    return {"thinking": {"type": "enabled" if effort.thinks else "disabled"}, **named}


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
