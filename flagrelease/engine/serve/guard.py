"""Who may ask: whoever sends the key; where there is none, whoever asks an address or `localhost`."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware

from flagrelease.engine.serve.requests.refusals import error_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::\d*)?")
_OPEN = ("/health", "/health/live", "/health/ready")  # a monitor need not know the key


class Guard:
    """An application behind the check.

    Without a key, a page in a browser could reach a server on loopback through a name of its own that resolves to
    127.0.0.1 (DNS rebinding); its requests carry that name as the host. An address or `localhost` is no such name.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        """`key`: what clients must send as a bearer token or as `x-api-key`; None: nothing."""
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or let the application answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._key is None and not _is_here(headers.get("host", "")):
            words = (
                f"host {headers['host']!r}: without --api-key-env this server answers to localhost and addresses only"
            )
            await error_response(403, words, code="host_not_allowed", path=scope["path"])(scope, receive, send)
        elif self._key is not None and scope["path"] not in _OPEN and not self._has_key(headers):
            words, headers_ = "the API key is missing or wrong", {"WWW-Authenticate": "Bearer"}
            answer = error_response(401, words, None, "invalid_api_key", headers_, scope["path"])
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        sent = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(sent.encode(), (self._key or "").encode())


def for_pages(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """`app` for pages of these origins, too: a browser hands them the answers. Its preflights are answered here."""
    methods, told = ("GET", "HEAD", "POST"), ("retry-after",)
    return CORSMiddleware(app, origins, allow_methods=methods, allow_headers=["*"], expose_headers=told)


def _is_here(host: str) -> bool:
    """Whether a Host header names no domain: `localhost` or an address, with a port or not. HTTP/1.0 may send none."""
    parts = _HOST.fullmatch(host)
    return not host or (parts is not None and (parts[1].lower() == "localhost" or _is_address(parts[1].strip("[]"))))


def _is_address(name: str) -> bool:
    """Whether `name` is an IP address rather than a domain's name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
