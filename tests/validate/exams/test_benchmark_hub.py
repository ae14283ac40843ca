"""Benchmark data from a hub on 127.0.0.1, with the hub's own client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from scripted_exam import choice_records, choice_rules, write_jsonl

from flagrelease.errors import NetworkError
from flagrelease.validate.exams.exam import read_exam
from flagrelease.validate.exams.hub import download

COMMIT = "c0ffee" + "0" * 34
FILES = {f"data/{n}.jsonl": json.dumps(choice_records(2)[n]).encode() + b"\n" for n in range(2)}
RULES = choice_rules(files=tuple(FILES), revision="main")


class Hub(BaseHTTPRequestHandler):
    """Two files at one commit; another dataset is gated, others do not exist."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []  # noqa: RUF012  # of the one server of a test

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        _, _, owner, name, _, revision, *path = self.path.split("/")
        content = FILES.get("/".join(path))
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


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_files_come_from_one_commit(hub: str, tmp_path: Path) -> None:
    paths, commit = download(RULES, hub, tmp_path / "cache")
    assert commit == COMMIT
    assert [path.read_bytes() for path in paths] == list(FILES.values())
    exam = read_exam(RULES, paths, commit)
    assert exam.revision == COMMIT
    assert exam.items == read_exam(RULES, [write_jsonl(tmp_path / "own.jsonl", choice_records(2))]).items
    second = [path for path in Hub.asked if path.endswith("1.jsonl")]
    assert all(f"/resolve/{COMMIT}/" in path for path in second)  # "main" may have moved after the first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset": "someone/gated"}, "access is given by its owners"),
        ({"dataset": "someone/missing"}, "HTTP 404"),
        ({"files": ("data/9.jsonl",)}, r"data/9.jsonl: HTTP 404"),
    ],
)
def test_what_the_hub_does_not_give(hub: str, tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(NetworkError, match=said):
        download(choice_rules(**{"files": tuple(FILES)} | change), hub, tmp_path)


@pytest.mark.slow
def test_no_hub(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="cannot be reached; give a file of your own"):
        download(RULES, "http://127.0.0.1:9", tmp_path)
