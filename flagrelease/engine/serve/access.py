"""The access log: a line for every request, with nothing in it that a client keeps secret."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_TOKENS = "flagrelease.tokens"
_LONGEST_PATH = 200
_CLIENT_LEFT = 499  # nginx's number


@dataclass(slots=True)
class TokenCount:
    """Tokens of a request: of its prompts, each as often as it is continued, and of its answers."""

    prompt: int = 0
    generated: int = 0


def token_count(scope: Scope) -> TokenCount:
    """The count that belongs to a request, for whoever answers it."""
    count: TokenCount = scope.setdefault(_TOKENS, TokenCount())
    return count


class AccessLog:
    """An application whose requests are logged when they have ended.

    A line has the time, the client's address, the method, the path without the query, the status, the tokens of prompts
    and answers, and the seconds from the first byte to the last.
    """

    def __init__(self, app: ASGIApp, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`write`: is given each line."""
        self._app, self._write, self._clock = app, write, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer, and log how it did. A client who left before the answer began has status 499."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = self._clock(), _CLIENT_LEFT

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._write(self._line(scope, status, self._clock() - begun))

    def _line(self, scope: Scope, status: int, seconds: float) -> str:
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        client, count = scope.get("client"), token_count(scope)
        host = "-" if client is None else client[0]
        path = quote(scope["path"][:_LONGEST_PATH], safe="/:@,")  # a line break in it must not begin a line here
        tokens = f"{count.prompt}+{count.generated} tokens"
        return f"{now} {host} {scope['method']} {path} {status} {tokens} {seconds:.3f} s"
