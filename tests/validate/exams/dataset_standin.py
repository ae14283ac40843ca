"""A hub on 127.0.0.1 with one dataset, for the hub's own client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from scripted_exam import choice_records

COMMIT = "c0ffee" + "0" * 34
FILES = {f"data/{n}.jsonl": json.dumps(choice_records(2)[n]).encode() + b"\n" for n in range(2)}
NAMELESS = {"data/nameless.jsonl": b'{"Question": "?"}\n'}  # lacks the fields of a question


class DatasetHub(BaseHTTPRequestHandler):
    """Two files at one commit, and one without the fields; another dataset is gated, others do not exist."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []  # noqa: RUF012  # of the one server of a test

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        _, _, owner, name, _, revision, *path = self.path.split("/")
        content = (FILES | NAMELESS).get("/".join(path))
        if name == "gated":
            self.reply(403, b"", {"X-Error-Code": "GatedRepo"})
        elif (owner, name) != ("someone", "choices"):
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif content is None or revision not in ("main", COMMIT):
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            self.reply(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{path[-1]}"'})

    def do_GET(self) -> None:
        self.do_HEAD()

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def dataset_hub() -> Iterator[str]:
    """The address of a running one."""
    DatasetHub.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), DatasetHub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
