"""What a server does around its requests: takes its port early, logs, lets pages ask, tells streams why it ends."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from engine_checkpoint import random_tokens
from scripted_service import ScriptedService, chat, scripted_app
from small_tokenizer import write_tokenizer
from starlette.types import ASGIApp

from flagrelease import cli, engine
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.preflight import check_origins
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.serve import large
from flagrelease.engine.serve.access import AccessLog
from flagrelease.engine.serve.bind import bind, close, listen_on
from flagrelease.engine.serve.guard import Guard, for_pages
from flagrelease.engine.serve.service import Service
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import ResourceError, UsageError

KEY = "sk-secret"
PAGE = "https://chat.example.org"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_a_port_that_a_server_which_still_loads_has_is_in_use() -> None:
    # the port was only looked at; two servers could load for minutes, and one of them failed then
    port = free_port()
    loading = bind("127.0.0.1", port)
    with pytest.raises(ResourceError, match=f"port {port} of 127.0.0.1 is in use"):
        bind("127.0.0.1", port)
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0, "callers are refused, not kept waiting, while it loads"
    listen_on(loading, "127.0.0.1", port)
    with socket.create_connection(("127.0.0.1", port)):
        pass
    close(loading)


def test_the_next_server_has_the_port_although_connections_linger() -> None:
    port = free_port()
    first = bind("127.0.0.1", port)
    listen_on(first, "127.0.0.1", port)
    with socket.create_connection(("127.0.0.1", port)) as client:
        served, _ = first[0].accept()
        served.close()  # the side that closes first lingers
        client.recv(1)
    close(first)
    again = bind("127.0.0.1", port)
    listen_on(again, "127.0.0.1", port)
    close(again)


@pytest.fixture
def service(tmp_path: Path) -> ScriptedService:
    write_tokenizer(tmp_path)
    return ScriptedService(Tokenizer(tmp_path))


def ask(app: ASGIApp, *requests: tuple[str, str, dict[str, Any]]) -> list[httpx2.Response]:
    async def work() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return [await client.request(method, path, **more) for method, path, more in requests]

    return asyncio.run(work())


def test_the_access_log_has_a_line_a_request_without_keys_and_texts(service: ScriptedService) -> None:
    lines: list[str] = []
    app = AccessLog(Guard(scripted_app(service.tokenizer, service), KEY), lines.append)
    bearer = {"Authorization": f"Bearer {KEY}"}
    secret = chat(messages=[{"role": "user", "content": "my secret"}])
    ask(
        app,
        ("POST", "/v1/chat/completions?key=sk-query", {"json": secret, "headers": bearer}),
        ("POST", "/v1/chat/completions", {"json": {**secret, "stream": True}, "headers": bearer}),
        ("GET", "/v1/models", {}),
        ("GET", "/none%0A2026-01-01T00:00:00Z forged", {"headers": bearer}),
    )
    prompt = len(service.asked[0][0])
    head = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ 127\.0\.0\.1 "
    expected = [
        f"POST /v1/chat/completions 200 {prompt}\\+2 tokens",
        f"POST /v1/chat/completions 200 {prompt}\\+2 tokens",
        r"GET /v1/models 401 0\+0 tokens",
        r"GET /none%0A2026-01-01T00:00:00Z%20forged 404 0\+0 tokens",
    ]
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected, strict=True):
        assert re.fullmatch(head + words + r" \d+\.\d{3} s", line), line
    assert not [line for line in lines if "secret" in line or "sk-" in line or "Hello" in line]


def test_a_browser_is_told_which_pages_may_ask_before_it_has_a_key(service: ScriptedService) -> None:
    app = for_pages(Guard(scripted_app(service.tokenizer, service), KEY), [PAGE])
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    bearer = {"Authorization": f"Bearer {KEY}"}
    allowed, foreign, answered, keyless, elsewhere = ask(
        app,
        ("OPTIONS", "/v1/chat/completions", {"headers": {"Origin": PAGE, **preflight}}),
        ("OPTIONS", "/v1/chat/completions", {"headers": {"Origin": "https://evil.example", **preflight}}),
        ("POST", "/v1/chat/completions", {"json": chat(), "headers": {"Origin": PAGE, **bearer}}),
        ("POST", "/v1/chat/completions", {"json": chat(), "headers": {"Origin": PAGE}}),
        ("GET", "/v1/models", {"headers": {"Origin": "https://evil.example", **bearer}}),
    )
    origin = "access-control-allow-origin"
    assert (allowed.status_code, allowed.headers[origin]) == (200, PAGE)
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    assert (foreign.status_code, origin in foreign.headers) == (400, False)
    assert (answered.status_code, answered.headers[origin]) == (200, PAGE)
    assert (keyless.status_code, keyless.headers[origin]) == (401, PAGE), "the page can read the refusal"
    assert origin not in elsewhere.headers


def test_origins_that_are_refused() -> None:
    check_origins([PAGE, "http://localhost:3000"], None)
    check_origins(["*"], KEY)
    with pytest.raises(UsageError, match="needs a key"):
        check_origins(["*"], None)
    for origin in ("chat.example.org", f"{PAGE}/", "https://*.example.org", "null", "file://x"):
        with pytest.raises(UsageError, match="scheme and host"):
            check_origins([origin], KEY)


def test_origins_are_refused_before_loading(quick_release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", str(quick_release), "--allow-origin", "*"]) == 2
    assert "needs a key" in capsys.readouterr().err


def make_service(release: Path, folder: Path) -> Service:
    write_tokenizer(folder)
    runner = Runner(engine.load(release, "bf16", torch.float32), rows=1, context=2000)
    return Service(Scheduler(runner, Tokenizer(folder)), queue_limit=2)


def collect(service: Service, begun: Callable[[], None]) -> str:
    """What the streams of a running and a waiting sequence end with, both the same."""

    async def work() -> str:
        prompt = random_tokens(4, vocabulary=263)
        streams = service.open([(prompt, Sampling(temperature=1, seed=0, max_tokens=1500, ignore_eos=True))] * 2)
        await anext(streams[0])
        begun()
        said = []
        for stream in streams:
            with pytest.raises(ResourceError) as stopped:
                async for _ in stream:
                    pass
            said.append(str(stopped.value))
            stream.close()
        assert said[0] == said[1]
        return said[0]

    return asyncio.run(work())


def test_streams_are_told_why_they_end_without_the_thread(quick_release: Path, tmp_path: Path) -> None:
    service = make_service(quick_release, tmp_path)
    service.start()
    assert collect(service, lambda: service.abandon("the server has been stopped")) == "the server has been stopped"
    assert not service.alive
    with pytest.raises(ResourceError, match="has stopped"):
        asyncio.run(_open(service))
    service.stop()


async def _open(service: Service) -> None:
    service.open([([1], Sampling())])


def test_a_model_that_fails_ends_the_service_and_whoever_stops_it_learns_why(
    quick_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the thread printed its traceback and died, and the server went on for ever, with 503 to everybody
    service = make_service(quick_release, tmp_path)
    service.start()

    def broken(order: object) -> None:
        raise ZeroDivisionError("planted")

    assert "stopped" in collect(service, lambda: monkeypatch.setattr(service._scheduler.runner, "run", broken))
    assert not service.alive
    with pytest.raises(ZeroDivisionError, match="planted"):
        service.stop()


def test_loading_says_how_far_it_is(quick_release: Path) -> None:
    told: list[tuple[int, int]] = []
    engine.load(quick_release, "bf16", torch.float32, mtp=True, progress=lambda done, total: told.append((done, total)))
    counts = [done for done, _ in told]
    assert counts == sorted(counts)
    assert {total for _, total in told} == {counts[-1]}, "in the end everything is loaded"


def test_a_signal_for_the_group_meets_no_process_for_large_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one of a server said KeyboardInterrupt: Python's tracker starts with it, and unblocks the signals."""
    tracker = resource_tracker.ResourceTracker()
    for name in ("getfd", "ensure_running"):
        monkeypatch.setattr(resource_tracker, name, getattr(tracker, name))
    process, line = large._start()
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        blocked = int(re.findall(r"SigBlk:\s*(\w+)", status)[0], 16)
        assert [number for number in (signal.SIGINT, signal.SIGTERM) if not blocked >> (number - 1) & 1] == []
    finally:
        process.kill()
        process.join()
        line.close()
        tracker._stop()
