"""`EndpointClient`: asks a server over HTTP, waits out what passes by itself, and gives typed replies.

Messages name the status, never the body: a server's complaint may quote the question. Redirects are not followed, so a
key and a prompt go only to the address that was given.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from flagrelease.errors import NetworkError, ResourceError
from flagrelease.event_lines import EventLines
from flagrelease.extras import remedy
from flagrelease.retry import TRANSIENT_STATUS, Obstacle, Patience, seconds_asked
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

if TYPE_CHECKING:
    import httpx2

Result = TypeVar("Result")

# What a server answers to a field, a path or a value that it does not know.
_UNSUPPORTED_STATUS = frozenset({400, 404, 405, 415, 422, 501})
# Fields that every server with this interface has; a refusal is blamed on the others.
_PLAIN = frozenset({"model", "messages", "prompt", "max_tokens", "temperature", "top_p", "seed", "stream"})
_PASSING_STATUS = TRANSIENT_STATUS | {409}  # OpenAI's 409: another request holds a lock


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
        try:
            import httpx2
        except ModuleNotFoundError as error:
            raise ResourceError(f"an endpoint needs {error.name}: {remedy('eval')}") from error
        key = endpoint.key()
        self.endpoint = endpoint
        self.patience = patience or Patience()
        self._troubles: dict[asyncio.Task[Any] | None, str] = {}
        self._http = httpx2.AsyncClient(
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=endpoint.timeout,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
            follow_redirects=False,
            trust_env=not endpoint.on_loopback,  # a proxy would get what is meant for this machine
        )

    async def __aenter__(self) -> EndpointClient:
        """Connections are made when they are needed, and kept."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them."""
        await self._http.aclose()

    async def models(self) -> tuple[ServedModel, ...] | Unsupported:
        """What the server lists under /v1/models."""
        found = await self._get(self.endpoint.base + "models")
        return found if isinstance(found, Unsupported) else self._checked(lambda: read_models(found))

    async def told(self) -> dict[str, str]:
        """What the server says of itself, by name: `server` (the header), `version` (/version), `owned_by`.

        It is the server's word. What it does not say is left out. A server that does not answer says nothing, and is
        not waited for: whoever needs an answer of it waits.
        """
        import httpx2

        try:
            models = await self._http.get(self.endpoint.base + "models")
            version = await self._http.get(self.endpoint.root + "version")
        except httpx2.HTTPError:
            return {}
        owners = read_owners(models.content, self.endpoint.model)
        found = {"server": models.headers.get("server", ""), "version": read_version(version.content)}
        return {name: value for name, value in (found | {"owned_by": "".join(owners[:1])}).items() if value}

    async def chat(self, ask: ChatAsk) -> ChatReply | Unsupported:
        """Have a chat continued; the answer comes whole.

        Returns:
            `Unsupported` where the server refuses a field, or leaves out log-probabilities that were asked for.

        Raises:
            NetworkError: no answer, or one that is not as the protocol says. Names address and status, never a body.
        """
        body = ask.body(self.endpoint.model, self.endpoint.dialect)
        found = await self._post(self.endpoint.base, "chat/completions", body)
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
        found = await self._patiently(lambda: self._events("chat/completions", body))
        if isinstance(found, Unsupported):
            return found
        chunks, done = found
        reply = self._checked(lambda: assemble(chunks))
        return StreamedReply(reply, chunks, done)

    async def complete(self, ask: CompletionAsk) -> CompletionReply | Unsupported:
        """Have a text or token ids continued, or only scored. Otherwise as `chat`."""
        body = ask.body(self.endpoint.model, self.endpoint.dialect)
        found = await self._post(self.endpoint.base, "completions", body)
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
        found = await self._post(self.endpoint.root, "tokenize", body)
        if isinstance(found, Unsupported):
            return found
        try:
            return read_tokenized(found)
        except MalformedReplyError as error:  # other servers have another form of it
            return Unsupported("tokenize", str(error))

    def trouble_of(self, task: asyncio.Task[Any]) -> str:
        """What the request of this task last met that may pass, such as "HTTP 429"; empty if nothing."""
        return self._troubles.get(task, "")

    async def _get(self, url: str) -> Any | Unsupported:
        response = await self._patiently(lambda: self._http.get(url))
        return self._document(response, urlsplit(url).path, ())

    async def _post(self, base: str, path: str, body: dict[str, Any]) -> Any | Unsupported:
        response = await self._patiently(lambda: self._http.post(base + path, json=body))
        return self._document(response, path, tuple(body))

    async def _events(
        self, path: str, body: dict[str, Any]
    ) -> tuple[tuple[Mapping[str, Any], ...], bool] | Unsupported:
        """The documents of a stream, and whether it ended as it should."""
        lines, cutter = [], EventLines()
        async with self._http.stream("POST", self.endpoint.base + path, json=body) as response:
            _refuse_passing(response)
            if not response.is_success:
                await response.aread()
                refusal = self._document(response, path, tuple(body))
                assert isinstance(refusal, Unsupported)
                return refusal
            async for piece in response.aiter_bytes():
                lines += cutter.push(piece)
        data = [line.removeprefix("data:").strip() for line in [*lines, *cutter.end()] if line.startswith("data:")]
        chunks = tuple(self._parsed(each) for each in data if each != "[DONE]")
        if not all(isinstance(chunk, Mapping) for chunk in chunks):
            raise NetworkError(f"{self.endpoint.shown}: a chunk of the stream is no object")
        if any("error" in chunk and chunk["error"] for chunk in chunks):
            raise NetworkError(f"{self.endpoint.shown}: the stream ended with an error of the server")
        return chunks, "[DONE]" in data

    async def _patiently(self, call: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """The result of `call`, which is made again while what it met may pass."""
        task = asyncio.current_task()
        try:
            for attempt in range(1, self.patience.attempts + 1):
                try:
                    return await self._attempt(call)
                except _PassingError as passing:
                    self._troubles[task] = passing.met.reason
                    seconds = self.patience.seconds_after(self.endpoint.shown, attempt, passing.met)
                await asyncio.sleep(seconds)
            raise AssertionError
        finally:
            self._troubles.pop(task, None)

    async def _attempt(self, call: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        import httpx2

        try:
            result = await call()
        except httpx2.TimeoutException:
            raise _PassingError(f"no answer within {self.endpoint.timeout:g} s") from None
        except (httpx2.TransportError, httpx2.StreamError) as error:
            raise _PassingError(f"no connection ({type(error).__name__})") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeDecodeError) as error:
            raise NetworkError(f"{self.endpoint.shown}: the reply cannot be read ({type(error).__name__})") from None
        if isinstance(result, httpx2.Response):
            _refuse_passing(result)
        return result

    def _document(self, response: httpx2.Response, path: str, fields: tuple[str, ...]) -> Any | Unsupported:
        """The JSON of a reply, or that the server does not do what was asked."""
        if response.is_success:
            return self._parsed(response.content)
        status = response.status_code
        if status in _UNSUPPORTED_STATUS:
            beyond = [field for field in fields if field not in _PLAIN]
            return Unsupported(_with(path, beyond), _refusal(response, fields), status)
        if response.is_redirect:
            there = urlsplit(urljoin(self.endpoint.url, response.headers.get("location", "")))
            raise NetworkError(
                f"{self.endpoint.shown}: HTTP {status} sends on to {there.scheme}://{there.hostname}, which is not "
                "followed: prompts and keys go only to the address that was given"
            )
        raise NetworkError(f"{self.endpoint.shown}: HTTP {status} for model {self.endpoint.model!r}")

    def _parsed(self, content: str | bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise NetworkError(f"{self.endpoint.shown}: the reply is not JSON") from None

    def _checked(self, read: Callable[[], Result]) -> Result:
        try:
            return read()
        except MalformedReplyError as error:
            raise NetworkError(f"{self.endpoint.shown}: {error}") from None


class _PassingError(Exception):
    """What an attempt met may be gone at the next one."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.met = Obstacle(reason, seconds)


def _refuse_passing(response: httpx2.Response) -> None:
    if response.status_code in _PASSING_STATUS:
        raise _PassingError(f"HTTP {response.status_code}", seconds_asked(response.headers))


def _refusal(response: httpx2.Response, fields: tuple[str, ...]) -> str:
    """The status, and the field that the server blames if it names one of the request's; nothing else it wrote."""
    try:
        error = response.json()["error"]
        blamed = str(error["param"]).partition("[")[0].partition(".")[0]
    except (ValueError, LookupError, TypeError, RecursionError):
        blamed = ""
    return f"HTTP {response.status_code}" + (f" ({blamed})" if blamed in fields else "")


Reply = TypeVar("Reply", ChatReply, CompletionReply)


def _lacking(path: str, wanted: Mapping[str, tuple[object, object]], reply: Reply) -> Reply | Unsupported:
    """The reply, unless something is asked for (not None) and was not given."""
    missing = [name for name, (asked, given) in wanted.items() if asked is not None and given is None]
    if not missing:
        return reply
    return Unsupported(_with(path, missing), f"the reply has no {' and no '.join(missing)}", reply=reply)


def _with(path: str, fields: list[str]) -> str:
    return path + (f" with {', '.join(fields)}" if fields else "")
