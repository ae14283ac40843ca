"""A server with chat completions on 127.0.0.1 that misbehaves as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[[dict[str, Any]], "Answer | None"]


@dataclass
class Answer:
    """What goes back. `wait` holds it until the server stops or the event is set."""

    status: int = 200
    document: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    wait: threading.Event | None = None
    cut: bool = False


def completion(content: str | None, finish: str = "stop", tokens: int = 7, **message: Any) -> Answer:
    return Answer(
        document={
            "id": "1", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{
                "index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content} | message,
            }],
            "usage": {"prompt_tokens": 21, "completion_tokens": tokens, "total_tokens": 21 + tokens},
        }
    )  # fmt: skip


class Standin:
    """`behave` gets the request's document; where it returns None the answer is right: \\boxed{A}.

    Paths of `at` have an answer of their own, and so does everything that is got: 404 where there is none.
    """

    def __init__(self, behave: Behaviour = lambda request: None, at: dict[str, Answer] | None = None) -> None:
        self.behave = behave
        self.at = at or {}
        self.paths: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.serve(self)

            def do_GET(self) -> None:
                outer.give(self, outer.at.get(self.path, Answer(404, {})))

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self.lock:
            self.requests.append(request)
            self.keys.append(handler.headers["authorization"])
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            answer = self.at.get(handler.path) or self.behave(request) or completion("\\boxed{A}")
        try:
            self.give(handler, answer)
        finally:
            with self.lock:
                self.at_once -= 1

    def give(self, handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        self.paths.append(handler.path)
        self.headers.append(dict(handler.headers))
        try:
            if answer.wait is not None:
                answer.wait.wait(20)
            if answer.cut:
                handler.close_connection = True
                return
            content = json.dumps(answer.document).encode() if answer.content is None else answer.content
            handler.send_response(answer.status)
            for name, value in ({"content-type": "application/json"} | answer.headers).items():
                handler.send_header(name, value)
            handler.send_header("content-length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)
        except OSError:
            pass  # the client gave up, as some tests want

    def __enter__(self) -> Standin:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def streamed(*chunks: Any, done: bool = True) -> Answer:
    """A stream of these documents as server-sent events."""
    events = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks]
    whole = "".join([*events, *(["data: [DONE]\n\n"] if done else [])])
    return Answer(content=whole.encode(), headers={"content-type": "text/event-stream"})
