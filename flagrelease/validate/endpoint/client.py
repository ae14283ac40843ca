"""`EndpointClient`: asks a server, and gives typed replies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

from flagrelease.retry import Patience
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.endpoint.asks import ChatAsk, CompletionAsk
from flagrelease.validate.endpoint.assembled import assemble
from flagrelease.validate.endpoint.reading import (
    MalformedReplyError,
    read_chat,
    read_completion,
    read_models,
    read_owners,
    read_tokenized,
    read_version,
)
from flagrelease.validate.endpoint.replies import (
    ChatReply,
    CompletionReply,
    ServedModel,
    StreamedReply,
    TokenizedPrompt,
    Unsupported,
)
from flagrelease.validate.endpoint.transport import Transport, named

Result = TypeVar("Result")
_LONGEST = 100  # characters of what a server says of itself


class EndpointClient:
    """Use it as an async context. One client may have many requests under way at once; it is not for several loops."""

    def __init__(self, endpoint: Endpoint, patience: Patience | None = None) -> None:
        """Read the key; nothing is sent yet.

        Args:
            endpoint: where the server is. How many requests are sent at once is the caller's affair (`ask_each`).
            patience: how often one request is sent, and how long is waited in between.

        Raises:
            UsageError: as `Endpoint.key`.
            ResourceError: the HTTP client is not installed.
        """
        self.endpoint = endpoint
        self._server = Transport(endpoint, patience or Patience())

    async def __aenter__(self) -> EndpointClient:
        """Connections are made when they are needed, and kept."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them."""
        await self._server.close()

    async def models(self) -> tuple[ServedModel, ...] | Unsupported:
        """What the server lists under /v1/models."""
        found = await self._server.get(self.endpoint.base + "models")
        return found if isinstance(found, Unsupported) else self._checked(lambda: read_models(found))

    async def told(self) -> dict[str, str]:
        """What the server says of itself, by name: `server` (the header), `version` (/version), `owned_by`.

        It is the server's word. What it does not say is left out. A server that does not answer says nothing, and is
        not waited for: whoever needs an answer of it waits.
        """
        models = await self._server.look(self.endpoint.base + "models")
        version = await self._server.look(self.endpoint.root + "version")
        if models is None or version is None:
            return {}
        owners = read_owners(models.content, self.endpoint.model)
        found = {"server": models.headers.get("server", ""), "version": read_version(version.content)}
        said = found | {"owned_by": "".join(owners[:1])}
        return {name: _in_a_line(value) for name, value in said.items() if value}

    async def chat(self, ask: ChatAsk) -> ChatReply | Unsupported:
        """Have a chat continued; the answer comes whole.

        Returns:
            `Unsupported` where the server refuses a field, or leaves out log-probabilities that were asked for.

        Raises:
            NetworkError: no answer. Names address and status, never a body.
            MalformedReplyError: an answer that is not as the protocol says.
        """
        body = ask.body(self.endpoint.model, self.endpoint.dialect)
        found = await self._server.post(self.endpoint.base, "chat/completions", body)
        if isinstance(found, Unsupported):
            return found
        reply = self._checked(lambda: read_chat(found))
        wanted = {"logprobs": (ask.logprobs, reply.logprobs or reply.reasoning_logprobs)}
        return _lacking(
            "chat/completions", wanted | {"prompt_logprobs": (ask.prompt_logprobs, reply.prompt_logprobs)}, reply
        )

    async def stream(self, ask: ChatAsk) -> StreamedReply | Unsupported:
        """Have a chat continued; the answer comes in pieces, all of which are kept. Otherwise as `chat`.

        A connection that is cut is tried again from the start.
        """
        body = ask.body(self.endpoint.model, self.endpoint.dialect)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        found = await self._server.events("chat/completions", body)
        if isinstance(found, Unsupported):
            return found
        chunks, done = found
        reply = self._checked(lambda: assemble(chunks))
        return StreamedReply(reply, chunks, done)

    async def complete(self, ask: CompletionAsk) -> CompletionReply | Unsupported:
        """Have a text or token ids continued, or only scored. Otherwise as `chat`."""
        body = ask.body(self.endpoint.model, self.endpoint.dialect)
        found = await self._server.post(self.endpoint.base, "completions", body)
        if isinstance(found, Unsupported):
            return found
        reply = self._checked(lambda: read_completion(found, ask))
        wanted = {
            "logprobs": (ask.logprobs, reply.logprobs),
            "prompt_logprobs": (ask.prompt_logprobs, reply.prompt_logprobs),
        }
        return _lacking("completions", wanted, reply)

    async def tokenize(self, prompt: str | ChatAsk, *, special: bool = False) -> TokenizedPrompt | Unsupported:
        """The ids that the server makes of a text, or of a chat with its tools: /tokenize, beside /v1.

        Args:
            special: whether a text gets the begin-of-sentence token that the server's tokenizer may add.
        """
        if isinstance(prompt, str):
            body = {"model": self.endpoint.model, "prompt": prompt, "add_special_tokens": special}
        else:
            whole = prompt.body(self.endpoint.model, self.endpoint.dialect)
            shown = ("model", "messages", "tools", "chat_template_kwargs", "thinking", "reasoning_effort")
            body = {name: whole[name] for name in shown if name in whole}
        found = await self._server.post(self.endpoint.root, "tokenize", body)
        if isinstance(found, Unsupported):
            return found
        try:
            return read_tokenized(found)
        except MalformedReplyError as error:  # other servers have another form of it
            return Unsupported("tokenize", error.said)

    def trouble_of(self, task: asyncio.Task[Any]) -> str:
        """What the request of this task last met that may pass, such as "HTTP 429"; empty if nothing."""
        return self._server.trouble_of(task)

    def _checked(self, read: Callable[[], Result]) -> Result:
        try:
            return read()
        except MalformedReplyError as error:
            raise MalformedReplyError(error.said, self.endpoint.shown) from None


def _in_a_line(word: str) -> str:
    """What a server says of itself, as it is printed: a terminal would do what other characters say."""
    return "".join(each if each.isprintable() else "�" for each in word[:_LONGEST])


Reply = TypeVar("Reply", ChatReply, CompletionReply)


def _lacking(path: str, wanted: Mapping[str, tuple[object, object]], reply: Reply) -> Reply | Unsupported:
    """The reply, unless something is asked for (not None) and was not given."""
    missing = [name for name, (asked, given) in wanted.items() if asked is not None and given is None]
    if not missing:
        return reply
    return Unsupported(named(path, missing), f"the reply has no {' and no '.join(missing)}", reply=reply)
