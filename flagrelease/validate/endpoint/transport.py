"""`Transport`: JSON to a server and back; waits out what passes by itself, and tells what the server does not do.

Messages name the status, never the body: a server's complaint may quote the question. Redirects are not followed, so a
key and a prompt go only to the address that was given.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Coroutine, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from flagrelease.errors import NetworkError, ResourceError
from flagrelease.event_lines import EventLines
from flagrelease.extras import remedy
from flagrelease.retry import TRANSIENT_STATUS, Obstacle, Patience, seconds_asked
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.endpoint.reading import MalformedReplyError
from flagrelease.validate.endpoint.replies import Unsupported

if TYPE_CHECKING:
    import httpx2

Result = TypeVar("Result")

# What a server answers to a field, a path or a value that it does not know.
_UNSUPPORTED_STATUS = frozenset({400, 404, 405, 415, 422, 501})
# Fields that every server with this interface has; a refusal is blamed on the others.
_PLAIN = frozenset({
    "model", "messages", "prompt", "max_tokens", "temperature", "top_p", "seed", "stream", "stream_options",
    "thinking", "reasoning_effort", "chat_template_kwargs",
})  # fmt: skip
# So often a server may answer 500 to what not every server does; then it does not do it. Others wait 500 out as 503.
_LASTING_500 = 3
_PASSING_STATUS = TRANSIENT_STATUS | {409}  # OpenAI's 409: another request holds a lock


class Transport:
    """Requests to one server."""

    def __init__(self, endpoint: Endpoint, patience: Patience) -> None:
        """Read the key; nothing is sent yet.

        Raises:
            UsageError: as `Endpoint.key`.
            ResourceError: the HTTP client is not installed.
        """
        try:
            import httpx2
        except ModuleNotFoundError as error:
            raise ResourceError(f"an endpoint needs {error.name}: {remedy('eval')}") from error
        key = endpoint.key()
        self._endpoint, self._patience = endpoint, patience
        self._troubles: dict[asyncio.Task[Any] | None, str] = {}
        from_outside = not endpoint.on_loopback  # a proxy would get what is meant for this machine
        self._http = httpx2.AsyncClient(
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=endpoint.timeout,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
            follow_redirects=False,
            trust_env=from_outside,
            verify=_certificates(from_outside),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def trouble_of(self, task: asyncio.Task[Any]) -> str:
        """What the request of this task last met that may pass, such as "HTTP 429"; empty if nothing."""
        return self._troubles.get(task, "")

    async def look(self, url: str) -> httpx2.Response | None:
        """What is there, whatever its status, asked for once; None if nobody answers."""
        import httpx2

        try:
            return await self._http.get(url)
        except httpx2.HTTPError:
            return None

    async def get(self, url: str) -> Any | Unsupported:
        """The document there.

        Raises:
            NetworkError: no answer, or a status that means neither success nor that the server does not have this.
        """
        path = urlsplit(url).path
        response = await self._patiently(lambda: self._http.get(url), path)
        return response if isinstance(response, Unsupported) else self._document(response, path, ())

    async def post(self, base: str, path: str, body: dict[str, Any]) -> Any | Unsupported:
        """The document that `body` is answered with. Otherwise as `get`."""
        response = await self._patiently(lambda: self._http.post(base + path, json=body), _special(path, body))
        return response if isinstance(response, Unsupported) else self._document(response, path, tuple(body))

    async def events(self, path: str, body: dict[str, Any]) -> tuple[tuple[Mapping[str, Any], ...], bool] | Unsupported:
        """The documents of a stream, and whether it ended with [DONE]. Otherwise as `get`."""
        return await self._patiently(lambda: self._read_events(path, body), _special(path, body))

    async def _read_events(
        self, path: str, body: dict[str, Any]
    ) -> tuple[tuple[Mapping[str, Any], ...], bool] | Unsupported:
        lines, cutter = [], EventLines()
        async with self._http.stream("POST", self._endpoint.base + path, json=body) as response:
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
            raise MalformedReplyError("a chunk of the stream is no object", self._endpoint.shown)
        if any("error" in chunk and chunk["error"] for chunk in chunks):
            raise NetworkError(f"{self._endpoint.shown}: the stream ended with an error of the server")
        return chunks, "[DONE]" in data

    async def _patiently(
        self, call: Callable[[], Coroutine[Any, Any, Result]], special: str | None
    ) -> Result | Unsupported:
        """The result of `call`, which is made again while what it met may pass.

        Args:
            special: what is asked of the server, if not every server does it.
        """
        task = asyncio.current_task()
        try:
            for attempt in range(1, self._patience.attempts + 1):
                try:
                    return await self._attempt(call)
                except _PassingError as passing:
                    if passing.status == 500 and special is not None and attempt == _LASTING_500:
                        return Unsupported(special, f"HTTP 500, {attempt} times", 500)
                    self._troubles[task] = passing.met.reason
                    seconds = self._patience.seconds_after(self._endpoint.shown, attempt, passing.met)
                await asyncio.sleep(seconds)
            raise AssertionError
        finally:
            self._troubles.pop(task, None)

    async def _attempt(self, call: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        import httpx2

        try:
            result = await call()
        except httpx2.TimeoutException:
            raise _PassingError(f"no answer within {self._endpoint.timeout:g} s") from None
        except (httpx2.TransportError, httpx2.StreamError) as error:
            raise _PassingError(f"no connection ({type(error).__name__})") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeDecodeError) as error:
            raise NetworkError(f"{self._endpoint.shown}: the reply cannot be read ({type(error).__name__})") from None
        if isinstance(result, httpx2.Response):
            _refuse_passing(result)
        return result

    def _document(self, response: httpx2.Response, path: str, fields: tuple[str, ...]) -> Any | Unsupported:
        """The JSON of a reply, or that the server does not do what was asked."""
        if response.is_success:
            return self._parsed(response.content)
        status = response.status_code
        if status in _UNSUPPORTED_STATUS:
            return Unsupported(_special(path, dict.fromkeys(fields)) or path, _refusal(response, fields), status)
        if response.is_redirect:
            raise NetworkError(
                f"{self._endpoint.shown}: HTTP {status} sends on to {self._there(response)}, which is not "
                "followed: prompts and keys go only to the address that was given"
            )
        raise NetworkError(f"{self._endpoint.shown}: HTTP {status} for model {self._endpoint.model!r}")

    def _there(self, response: httpx2.Response) -> str:
        try:
            there = urlsplit(urljoin(self._endpoint.url, response.headers.get("location", "")))
        except ValueError:
            return "what is no address"
        return f"{there.scheme}://{there.hostname}"

    def _parsed(self, content: str | bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise MalformedReplyError("the reply is not JSON", self._endpoint.shown) from None


@cache
def _certificates(trust_env: bool) -> ssl.SSLContext:
    """What TLS trusts; reading it takes as long as a short request."""
    import httpx2

    return httpx2.create_ssl_context(trust_env=trust_env)


class _PassingError(Exception):
    """What an attempt met may be gone at the next one."""

    def __init__(self, reason: str, seconds: float | None = None, status: int | None = None) -> None:
        super().__init__(reason)
        self.met, self.status = Obstacle(reason, seconds), status


def _special(path: str, body: Mapping[str, Any]) -> str | None:
    """What a request asks for that not every server does; None if nothing."""
    beyond = [field for field in body if field not in _PLAIN]
    return named(path, beyond) if beyond else None


def _refuse_passing(response: httpx2.Response) -> None:
    if response.status_code in _PASSING_STATUS:
        status = response.status_code
        raise _PassingError(f"HTTP {status}", seconds_asked(response.headers), status)


def _refusal(response: httpx2.Response, fields: tuple[str, ...]) -> str:
    """The status, and the field that the server blames if it names one of the request's; nothing else it wrote."""
    try:
        error = response.json()["error"]
        blamed = str(error["param"]).partition("[")[0].partition(".")[0]
    except (ValueError, LookupError, TypeError, RecursionError):
        blamed = ""
    return f"HTTP {response.status_code}" + (f" ({blamed})" if blamed in fields else "")


def named(path: str, fields: list[str]) -> str:
    """How `Unsupported` names a request."""
    return path + (f" with {', '.join(fields)}" if fields else "")
