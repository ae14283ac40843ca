"""A client of /v1/chat/completions that streams, keeps time and gives every failure a name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx2

from flagrelease.bench.serve.drafts import read_acceptance
from flagrelease.bench.serve.sample import RequestSample
from flagrelease.engine.batch.acceptance import Acceptance
from flagrelease.errors import NetworkError, UsageError
from flagrelease.event_lines import EventLines
from flagrelease.redaction import redact
from flagrelease.server_address import is_on_loopback

Clock = Callable[[], float]


class RequestError(Exception):
    """What went wrong with one request. `kind` is what failures of its sort share."""

    def __init__(self, kind: str, detail: str, retry_after: float = 0.0) -> None:
        """`retry_after`: seconds that the server asks to wait."""
        super().__init__(detail)
        self.kind, self.retry_after = kind, retry_after


class ServedModel:
    """Use it as an async context. `url` ends before /v1, or with it."""

    def __init__(self, url: str, key: str | None, timeout: float, clock: Clock = time.perf_counter) -> None:
        """`timeout`: seconds without a byte after which a request has failed. `key` is sent as a bearer token.

        Raises:
            UsageError: that is no URL.
        """
        base = url.rstrip("/").removesuffix("/v1")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        try:
            address, self._metrics = httpx2.URL(f"{base}/v1"), httpx2.URL(f"{base}/metrics")
        except httpx2.InvalidURL as error:
            raise UsageError(f"{url}: {error}") from error
        self._key = key
        self._client = httpx2.AsyncClient(
            base_url=address,
            headers=headers,
            timeout=timeout,
            limits=limits,
            trust_env=not is_on_loopback(url),  # a proxy would get what is meant for this machine
        )
        self._clock = clock

    async def __aenter__(self) -> ServedModel:
        """Connections are made when they are needed and kept."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close them."""
        await self._client.aclose()

    async def models(self) -> list[str]:
        """The names that the server has.

        Raises:
            NetworkError: it does not answer as OpenAI's API says.
        """
        try:
            answer = (await self._client.get("/models")).raise_for_status()
            return [str(model["id"]) for model in answer.json()["data"]]
        except (httpx2.HTTPError, ValueError, TypeError, KeyError) as error:
            said = self._hidden(str(error) or type(error).__name__)
            raise NetworkError(f"{self._client.base_url}models: {said}") from error

    async def acceptance(self) -> Acceptance | None:
        """What became of the server's drafts so far; None if it does not tell."""
        try:
            answer = await self._client.get(self._metrics)
        except httpx2.HTTPError:
            return None
        return read_acceptance(answer.text) if answer.status_code == httpx2.codes.OK else None

    async def ask(self, model: str, text: str, max_tokens: int) -> RequestSample:
        """One user message, answered with at most `max_tokens` at temperature 1."""
        body = {
            "model": model, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens,
            "temperature": 1.0, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        begun, answer, lines = self._clock(), _Answer(), EventLines()
        failure: RequestError | None = None
        try:
            async with self._client.stream("POST", "/chat/completions", json=body) as response:
                if response.status_code != httpx2.codes.OK:
                    raise _refusal(response, await response.aread())
                async for piece in response.aiter_bytes():
                    for line in lines.push(piece):
                        answer.take(line, self._clock() - begun)
                for line in lines.end():
                    answer.take(line, self._clock() - begun)
            answer.require_whole()
        except RequestError as error:
            failure = error
        except httpx2.TimeoutException as error:
            failure = RequestError("timeout", type(error).__name__)
        except (httpx2.RemoteProtocolError, httpx2.ReadError) as error:  # the connection ended inside the answer
            failure = RequestError("cut", str(error) or type(error).__name__)
        except (httpx2.DecodingError, UnicodeDecodeError) as error:
            failure = RequestError("garbage", str(error))
        except httpx2.HTTPError as error:
            failure = RequestError("connection", f"{type(error).__name__}: {error}")
        return answer.sample(failure, self._clock() - begun, self._hidden)

    def _hidden(self, text: str) -> str:
        """What a server or its client said, without the key: some name the key that they refuse."""
        return redact(text if self._key is None else text.replace(self._key, "[hidden]"))


class _Answer:
    """Server-sent events, taken line by line."""

    def __init__(self) -> None:
        self._arrivals: list[float] = []
        self._usage: tuple[int, int] | None = None
        self._finished = self._done = False

    def take(self, line: str, now: float) -> None:
        """One line that came at `now`; comments and fields other than data say nothing here."""
        field, colon, value = line.partition(":")
        if not line or not field or field in ("event", "id", "retry"):
            return
        if field != "data" or not colon:
            raise RequestError("garbage", f"no server-sent event: {line[:80]!r}")
        if value.strip() == "[DONE]":
            self._done = True
            return
        try:
            chunk = json.loads(value)
            if "error" in chunk:
                raise RequestError("error in stream", str(chunk["error"])[:200])
            if any(self._has_text(choice) for choice in chunk["choices"]):
                self._arrivals.append(now)
            if chunk.get("usage") is not None:
                self._usage = int(chunk["usage"]["prompt_tokens"]), int(chunk["usage"]["completion_tokens"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RequestError("garbage", f"no chunk of a chat completion: {value[:80]!r}") from error

    def _has_text(self, choice: dict[str, Any]) -> bool:
        self._finished = self._finished or choice.get("finish_reason") is not None
        delta = choice["delta"]
        return bool(delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls"))

    def require_whole(self) -> None:
        """Raises `RequestError` if the stream ended before the answer did."""
        if not (self._finished and self._done):
            raise RequestError("cut", "the stream ended without a finish_reason and [DONE]")
        if not self._arrivals:
            raise RequestError("empty", "an answer without text")

    def sample(self, failure: RequestError | None, ended: float, hidden: Callable[[str], str]) -> RequestSample:
        prompt, tokens = self._usage or (None, len(self._arrivals))
        return RequestSample(
            failure=None if failure is None else failure.kind,
            detail="" if failure is None else hidden(str(failure)),
            arrivals=tuple(self._arrivals),
            ended=ended,
            prompt_tokens=prompt,
            tokens=tokens,
            counted=self._usage is not None,
            retry_after=0.0 if failure is None else failure.retry_after,
        )


def _refusal(response: httpx2.Response, body: bytes) -> RequestError:
    after = response.headers.get("Retry-After", "0")
    seconds = float(after) if after.isdigit() else 0.0  # it may also be a date, which nobody sends
    return RequestError(str(response.status_code), body.decode("utf-8", "replace")[:200], seconds)
