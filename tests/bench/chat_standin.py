"""A chat server that streams what a test tells it to, faults included, over real sockets."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """`behaviours` are used up one a request; the last one stays."""

    protocol_version = "HTTP/1.1"
    behaviours: list[Behaviour]
    requests: list[tuple[dict[str, Any], str | None]]
    models: list[str]
    metrics: list[str]
    lock: threading.Lock

    def log_message(self, *words: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self.answer(200 if self.metrics else 404, self.metrics.pop(0) if self.metrics else "")
            return
        self.answer(200, json.dumps({"data": [{"id": name} for name in self.models]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.requests.append((body, self.headers["Authorization"]))
            behave = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client that gave up
            behave(self, body)

    def answer(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def raw(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def event(self, document: Any) -> None:
        self.raw(f"data: {json.dumps(document)}\n\n")

    def piece(self, text: str, finish: str | None = None, part: str = "content") -> None:
        self.event({"choices": [{"index": 0, "delta": {part: text} if text else {}, "finish_reason": finish}]})

    def end(self, *, done: bool = True) -> None:
        if done:
            self.raw("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def drop(self) -> None:
        """The connection ends in the middle of the answer."""
        self.close_connection = True


def well(pieces: int = 3, usage: bool = True, pause: float = 0.0, part: str = "content") -> Behaviour:
    def behave(handler: Handler, body: dict[str, Any]) -> None:
        handler.begin()
        handler.piece("")  # the role
        for n in range(pieces):
            time.sleep(pause)
            handler.piece(f"w{n}", part=part)
        handler.piece("", finish="length")
        if usage:
            words = len(body["messages"][0]["content"].split())
            handler.event({"choices": [], "usage": {"prompt_tokens": 7 + 3 * words, "completion_tokens": 2 * pieces}})
        handler.end()

    return behave


def refuse(status: int, headers: dict[str, str] | None = None) -> Behaviour:
    return lambda handler, body: handler.answer(status, '{"error": {"message": "not now"}}', headers)


def cut(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin()
    handler.piece("w0")
    handler.drop()


def no_end(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin()
    handler.piece("w0")
    handler.end(done=False)


def lines(*text: str) -> Behaviour:
    def behave(handler: Handler, body: dict[str, Any]) -> None:
        handler.begin()
        for line in text:
            handler.raw(line + "\n\n")
        handler.piece("w0", finish="stop")
        handler.end()

    return behave


def silence(handler: Handler, body: dict[str, Any]) -> None:
    handler.begin()
    handler.piece("w0")
    time.sleep(1)


@contextlib.contextmanager
def chat_server(
    *behaviours: Behaviour, models: tuple[str, ...] = ("one",), metrics: tuple[str, ...] = ()
) -> Iterator[tuple[str, type[Handler]]]:
    class Told(Handler):
        pass

    Told.behaviours, Told.requests, Told.models, Told.lock = list(behaviours), [], list(models), threading.Lock()
    Told.metrics = list(metrics)
    with ThreadingHTTPServer(("127.0.0.1", 0), Told) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", Told
        server.shutdown()
        thread.join()
