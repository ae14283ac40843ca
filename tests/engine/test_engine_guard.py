"""Who may ask the server: keys, hosts of other names, bodies that are too long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from scripted_service import ScriptedService, caller, chat, scripted_app
from small_tokenizer import write_tokenizer

from flagrelease.engine.preflight import serving_key
from flagrelease.engine.serve.guard import Guard
from flagrelease.engine.serve.requests import refusals
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import UsageError

CHATS = "/v1/chat/completions"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> ScriptedService:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return ScriptedService(Tokenizer(folder))


def ask(service: ScriptedService, key: str | None, method: str, path: str, **what: Any) -> httpx2.Response:
    async def call() -> httpx2.Response:
        app: Any = Guard(scripted_app(service.tokenizer, service), key)
        async with caller(app) as client:
            return await client.request(method, path, **what)

    return asyncio.run(call())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer secret2"}, 401),
        ({"authorization": "Basic secret"}, 401),
        ({"authorization": "secret"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"x-api-key": ""}, 401),
        ({"authorization": "Bearer \u00fc".encode("latin-1")}, 401),
        ({"authorization": "Bearer secret"}, 200),
        ({"authorization": "bearer secret"}, 200),
        ({"x-api-key": "secret"}, 200),
    ],
)
def test_every_request_needs_the_key(service: ScriptedService, headers: Any, status: int) -> None:
    for method, path, what in (("POST", CHATS, {"json": chat()}), ("GET", "/v1/models", {}), ("GET", "/metrics", {})):
        answer = ask(service, "secret", method, path, headers=headers, **what)
        assert answer.status_code == status
    if status == 401:
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_path_that_is_not_there_is_not_told_without_the_key(service: ScriptedService) -> None:
    assert ask(service, "secret", "GET", "/nowhere").status_code == 401


def test_health_needs_no_key(service: ScriptedService) -> None:
    paths = ("/health", "/health/live", "/health/ready")
    assert [ask(service, "secret", "GET", path).status_code for path in paths] == [200, 200, 200]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:8000", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("[::1]", 200),
        ("192.168.0.7", 200), ("evil.example", 403), ("evil.example:8000", 403), ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:80", 403), ("1", 403), (":8000:x", 403),
    ],
)  # fmt: skip
def test_a_page_cannot_reach_loopback_through_a_name_of_its_own(
    service: ScriptedService, host: str, status: int
) -> None:
    before = len(service.asked)
    answer = ask(service, None, "POST", CHATS, json=chat(), headers={"host": host})
    assert answer.status_code == status
    assert len(service.asked) - before == (status == 200)
    if status == 403:
        assert host.lower() in answer.json()["error"]["message"].lower()


def test_with_a_key_the_host_may_have_any_name(service: ScriptedService) -> None:
    headers = {"host": "model.example", "authorization": "Bearer secret"}
    assert ask(service, "secret", "POST", CHATS, json=chat(), headers=headers).status_code == 200


def test_a_body_is_read_no_further_than_its_limit(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MOST_BYTES", 1000)
    sent = []

    async def endless() -> AsyncIterator[bytes]:  # without content-length, as a client that means harm
        for _ in range(100):
            sent.append(1)
            yield b'{"model": "' + b"x" * 90

    headers = {"content-type": "application/json"}
    answer = ask(service, None, "POST", CHATS, content=endless(), headers=headers)
    assert answer.status_code == 413
    assert "1,000 bytes" in answer.json()["error"]["message"]
    messages = [{"role": "user", "content": "x" * 1000}]
    assert ask(service, None, "POST", CHATS, json=chat(messages=messages)).status_code == 413
    assert ask(service, None, "POST", CHATS, json=chat()).status_code == 200


def test_none_is_read_of_a_body_that_is_said_to_be_too_long(service: ScriptedService) -> None:
    # the client was told to go on, and sent 16 MiB before it was refused
    async def never() -> AsyncIterator[bytes]:
        yield pytest.fail("the body was read")

    headers = {"content-type": "application/json", "content-length": str(refusals.MOST_BYTES + 1)}
    answer = ask(service, None, "POST", CHATS, content=never(), headers=headers)
    assert answer.status_code == 413


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "model.example"])
def test_an_address_that_others_reach_needs_a_key(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVING_KEY", raising=False)
    with pytest.raises(UsageError, match="--api-key-env"):
        serving_key(host, None)
    for bad in (None, "", "two words", "schlüssel", "new\nline"):
        if bad is not None:
            monkeypatch.setenv("SERVING_KEY", bad)
        with pytest.raises(UsageError, match="SERVING_KEY"):
            serving_key(host, "SERVING_KEY")
    monkeypatch.setenv("SERVING_KEY", "secret")
    assert serving_key(host, "SERVING_KEY") == "secret"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert serving_key(host, None) is None
