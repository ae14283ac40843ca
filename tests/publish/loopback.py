"""A small HTTP server on 127.0.0.1 with planted faults: the ground both stand-in hubs stand on."""

from __future__ import annotations

import json
import re
import socket
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Fault:
    """What happens to the next `times` requests that match "METHOD path".

    kind: status (answer with `status` and `headers`, do nothing), cut (read half of the body, close the connection),
    lost (do the work, close the connection without a reply), call (run `hook` first, then go on), drop (run `hook`, do
    nothing, no reply).
    """

    pattern: str
    kind: str
    times: int = 1
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    hook: Callable[[], None] | None = None


@dataclass
class Seen:
    """One request as it came in."""

    method: str
    path: str
    size: int
    authorised: bool
    peer: int = 0  # the client's port: one connection has one


@dataclass
class Reply:
    status: int = 200
    document: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None


def ranged(content: bytes, headers: Any) -> Reply:
    """What a server answers to a GET with or without `Range: bytes=A-B`."""
    match = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range", ""))
    if match is None:
        return Reply(content=content)
    begin, end = int(match[1]), min(int(match[2]) + 1, len(content))
    if begin >= end:
        return Reply(416, {"error": "range"})
    return Reply(206, content=content[begin:end], headers={"Content-Range": f"bytes {begin}-{end - 1}/{len(content)}"})


class Loopback:
    """Routes are (method, pattern, function); a function gets the match, the query, the body and the headers."""

    def __init__(self) -> None:
        self.routes: list[tuple[str, str, Callable[..., Reply]]] = []
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.errors: list[str] = []  # of the stand-in itself
        self.lock = threading.RLock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # headers and body in one packet, or each reply waits for a delayed acknowledgement
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                outer._serve(self)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any  # noqa: N815

            def log_message(self, *_: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """A client that was killed leaves a broken connection; that is what is tested."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        assert not self.errors, self.errors[0]

    def count(self, pattern: str) -> int:
        """Requests seen that match "METHOD path"."""
        return sum(bool(re.fullmatch(pattern, f"{seen.method} {seen.path}")) for seen in self.seen)

    def received(self, pattern: str) -> int:
        """Bytes of the bodies of those requests."""
        return sum(seen.size for seen in self.seen if re.fullmatch(pattern, f"{seen.method} {seen.path}"))

    def _fault(self, what: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.fullmatch(fault.pattern, what):
                    fault.times -= 1
                    return fault
        return None

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        address = urlsplit(handler.path)
        path, length = unquote(address.path), int(handler.headers.get("Content-Length", 0))
        fault = self._fault(f"{handler.command} {path}")
        if fault is not None and fault.kind == "cut":
            handler.rfile.read(length // 2)
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self._body(handler, length)
        with self.lock:
            self.seen.append(
                Seen(handler.command, path, len(body), "Authorization" in handler.headers, handler.client_address[1])
            )
        if fault is not None and fault.hook is not None:
            fault.hook()
        if fault is not None and fault.kind == "drop":
            handler.close_connection = True
            return
        if fault is not None and fault.kind == "status":
            self._send(handler, Reply(fault.status, {"error": "planted"}, fault.headers))
            return
        reply = self._route(handler, path, parse_qs(address.query), body)
        if fault is not None and fault.kind == "lost":
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        self._send(handler, reply)

    @staticmethod
    def _body(handler: BaseHTTPRequestHandler, length: int) -> bytes:
        if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return handler.rfile.read(length)
        body = b""
        while size := int(handler.rfile.readline() or b"0", 16):
            body += handler.rfile.read(size)
            handler.rfile.readline()
        handler.rfile.readline()
        return body

    def _route(self, handler: BaseHTTPRequestHandler, path: str, query: dict[str, list[str]], body: bytes) -> Reply:
        for method, pattern, function in self.routes:
            if handler.command == method and (match := re.fullmatch(pattern, path)):
                with self.lock:
                    try:
                        return function(match, query, body, handler.headers)
                    except Exception:  # noqa: BLE001 - the thread would swallow it; `close` reports it
                        self.errors.append(traceback.format_exc())
                        return Reply(501, {"error": "the stand-in failed"})
        return Reply(404, {"error": f"the stand-in has no {handler.command} {path}"})

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        content = reply.content if reply.content is not None else json.dumps(reply.document).encode()
        handler.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)
