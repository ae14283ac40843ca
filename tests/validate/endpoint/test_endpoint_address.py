"""Where a server may be, and where a key may go: refused before anything is sent, and never shown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from endpoint_standin import Answer, Standin, completion

from flagrelease import cli
from flagrelease.errors import FlagReleaseError, NetworkError, UsageError
from flagrelease.retry import Patience
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.endpoint.asks import ChatAsk, CompletionAsk
from flagrelease.validate.endpoint.client import EndpointClient

KEY = "sk-planted-7c1e"
CHAT = ChatAsk(({"role": "user", "content": "Hi"},), 8)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/v1", "an http or https address is expected"),
        ("host:8000/v1", "an http or https address is expected"),
        ("http:///v1", "an http or https address is expected"),
        ("http://host:99999/v1", "an http or https address is expected"),
        ("https://user:SECRET@host/v1", "https://host/v1: a user and a password in the address are refused"),
        ("https://SECRET@host/v1", "https://host/v1: a user and a password in the address are refused"),
        ("https://host/v1?key=SECRET", "https://host/v1: an address ends with its path"),
        ("https://host/v1#SECRET", "https://host/v1: an address ends with its path"),
        ("https://host/v1?key=a@SECRET", "https://(not shown): a user and a password in the address are refused"),
        ("user:SECRET@host:8000/v1", "host:8000/v1: an http or https address is expected"),
        ("http:/user:SECRET@host/v1", "(not shown): an http or https address is expected"),
        ("http://user:SECRET@[::1/v1", "[::1/v1: an http or https address is expected"),
        ("http://user:SECRET@ho℀st/v1", "an http or https address is expected"),
        ("http://user:SECRET#SECRET@host/v1", "http://(not shown): an http or https address is expected"),
        ("http://user:SECRET/SECRET@host/v1", "http://(not shown): an http or https address is expected"),
    ],
)
def test_what_is_no_address(url: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Endpoint(url, "m")
    assert said in str(caught.value)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1:80", "localhost:8000", "[::1]:8000"])
def test_a_key_may_go_to_this_machine_in_plain_http(host: str) -> None:
    assert Endpoint(f"http://{host}/v1", "m", key_variable="K").on_loopback


@pytest.mark.parametrize(
    "host", ["10.0.0.5", "chip.example.org", "localhost.example.org", "127.0.0.1.example.org", "[fe80::1]", "0.0.0.0"]
)
def test_a_key_goes_nowhere_else_in_plain_http(host: str) -> None:
    with pytest.raises(UsageError, match="is plain http to another machine"):
        Endpoint(f"http://{host}/v1", "m", key_variable="K")
    assert Endpoint(f"https://{host}/v1", "m", key_variable="K").key_variable == "K"
    assert Endpoint(f"http://{host}/v1", "m").key() is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "no such variable"),
        ("", "or an empty one"),
        (f"{KEY}\nx: y", "characters that a key cannot have"),
        (f"{KEY} ", "characters that a key cannot have"),
        (f"{KEY}\u00e9", "characters that a key cannot have"),
    ],
)
def test_a_variable_without_a_key(monkeypatch: pytest.MonkeyPatch, value: str | None, said: str) -> None:
    monkeypatch.delenv("K", raising=False)
    if value is not None:
        monkeypatch.setenv("K", value)
    with pytest.raises(UsageError, match=said) as caught:
        EndpointClient(Endpoint("http://127.0.0.1:1/v1", "m", key_variable="K"))
    assert KEY not in str(caught.value)


def test_a_key_is_sent_only_if_its_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap: OpenAI's client sends OPENAI_API_KEY, OPENAI_ORG_ID and OPENAI_PROJECT_ID wherever it is pointed to."""
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "K"):
        monkeypatch.setenv(name, KEY)
    with Standin() as standin:
        ask(Endpoint(standin.url, "m"))
        assert KEY not in str(standin.headers)
        ask(Endpoint(standin.url, "m", key_variable="K"))
    assert standin.keys == [None, f"Bearer {KEY}"]


def test_a_proxy_does_not_get_what_is_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K", KEY)
    with Standin() as proxy, Standin() as standin:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        ask(Endpoint(standin.url, "m", key_variable="K"))
    assert (len(proxy.paths), len(standin.paths)) == (0, 1)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("K", KEY)
    with Standin() as other:
        sends_on = Answer(status, {}, {"location": f"{other.url}/chat/completions?token={KEY}"})
        with (
            Standin(lambda request: sends_on) as standin,
            pytest.raises(NetworkError, match=f"HTTP {status} sends on to http://127.0.0.1, which is not") as caught,
        ):
            ask(Endpoint(standin.url, "m", key_variable="K"))
        assert other.paths == []
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(400, {"error": {"message": KEY, "param": KEY}}),
        Answer(401, {"error": {"message": f"the key {KEY} is wrong"}}),
        Answer(403, {}),
        Answer(500, {"error": {"message": KEY}}),
        Answer(content=f"<html>{KEY}".encode()),
        Answer(cut=True),
        completion(None, KEY),
        Answer(document={"choices": [KEY], "usage": {}}),
    ],
)
def test_a_key_is_in_no_message(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], answer: Answer
) -> None:
    monkeypatch.setenv("K", KEY)
    everything: list[Callable[[EndpointClient], Any]] = [
        EndpointClient.models,
        EndpointClient.told,
        lambda client: client.chat(CHAT),
        lambda client: client.stream(CHAT),
        lambda client: client.complete(CompletionAsk("Hi", 8)),
        lambda client: client.tokenize("Hi"),
    ]
    paths = dict.fromkeys(("/v1/models", "/version", "/tokenize"), answer)
    with Standin(lambda request: answer, at=paths) as standin:
        endpoint = Endpoint(standin.url, "m", key_variable="K")
        said = [outcome(endpoint, call) for call in everything]
    if answer.status == 200:
        said = [words for words in said if words.startswith(standin.url)]  # the others are what was answered
    assert KEY not in "".join(said) + repr(endpoint) + "".join(capfd.readouterr())


@pytest.mark.parametrize("command", ["validate", "record"])
def test_commands_refuse_before_anything_is_read(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    words = ["baseline", "record", str(tmp_path), "--out", str(tmp_path / "b")]
    if command == "validate":
        words = ["validate", str(tmp_path), "--chip", "ascend", "--out", str(tmp_path / "out")]
    cases = {
        ("--endpoint", "https://me:SECRET@host/v1", "--model", "m"): "a user and a password in the address are refused",
        ("--endpoint", "http://host/v1", "--model", "m", "--key-env", "PATH"): "is plain http to another machine",
        ("--endpoint", "https://host/v1", "--model", "m", "--key-env", "NO_SUCH_KEY"): "has no such variable",
        ("--endpoint", "https://host/v1"): "--endpoint needs --model",
        ("--key-env", "PATH"): "--key-env belongs to --endpoint",
    }
    for options, said in cases.items():
        assert cli.main([*words, *options]) == 2
        err = capfd.readouterr().err
        assert said in err
        assert "SECRET" not in err


def outcome(endpoint: Endpoint, call: Callable[[EndpointClient], Any]) -> str:
    try:
        return str(ask(endpoint, call))
    except FlagReleaseError as error:
        return str(error)


def ask(endpoint: Endpoint, call: Callable[[EndpointClient], Any] = lambda client: client.chat(CHAT)) -> Any:
    async def work() -> Any:
        async with EndpointClient(endpoint, Patience(attempts=1)) as client:
            return await call(client)

    return asyncio.run(work())


def test_a_redirect_to_what_is_no_address_is_named_as_such() -> None:
    answer = Answer(302, {}, headers={"Location": "http://[::1"})
    with (
        Standin(lambda request: answer) as standin,
        pytest.raises(NetworkError, match="sends on to what is no address"),
    ):
        ask(Endpoint(standin.url, "m"))
