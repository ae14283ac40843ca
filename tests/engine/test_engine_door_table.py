"""The tables of docs/serving.md are what the server does: each parameter is in one, neutral values are accepted."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from scripted_service import NAME, ScriptedService, caller, chat, scripted_app
from small_tokenizer import write_tokenizer

from flagrelease.engine.serve.requests.protocol import ChatRequest, CompletionRequest
from flagrelease.engine.text import Tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
ROW = re.compile(r"^\| `(\w+)` \| (both|chat|completions) \| (.+) \|$", re.MULTILINE)
ENDPOINTS = {"both": ("chat", "completions"), "chat": ("chat",), "completions": ("completions",)}
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
OTHERS: list[Any] = [7.25, "seven", ["seven"], {"seven": 7}]  # at least two of them are no value of any parameter


def rows(heading: str) -> list[tuple[str, str, str]]:
    """Parameter, endpoint and values of a table."""
    found = ROW.findall(PAGE.read_text("utf-8").split(heading, 1)[1].split("\n\n", 2)[1])
    return [(name, endpoint, values) for name, where, values in found for endpoint in ENDPOINTS[where]]


DONE, NEUTRAL = rows("Done:"), rows("Accepted at values")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> ScriptedService:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return ScriptedService(Tokenizer(folder))


def statuses(service: ScriptedService, bodies: list[tuple[str, dict[str, Any]]]) -> list[tuple[int, Any]]:
    async def ask() -> list[tuple[int, Any]]:
        async with caller(scripted_app(service.tokenizer, service)) as client:
            answers = [await client.post(PATHS[endpoint], json=body) for endpoint, body in bodies]
        return [(each.status_code, each.json().get("error", {}).get("param")) for each in answers]

    return asyncio.run(ask())


def body(endpoint: str, name: str, value: Any) -> dict[str, Any]:
    whole = chat() if endpoint == "chat" else {"model": NAME, "prompt": "x", "max_tokens": 2}
    return {**whole, name: value}


@pytest.mark.parametrize(("endpoint", "model"), [("chat", ChatRequest), ("completions", CompletionRequest)])
def test_every_parameter_is_in_one_table(endpoint: str, model: type[ChatRequest | CompletionRequest]) -> None:
    told = [name for name, where, _ in DONE + NEUTRAL if where == endpoint]
    assert sorted(told) == sorted(model.model_fields)


def test_neutral_values_are_accepted_and_no_others(service: ScriptedService) -> None:
    bodies, expected = [], []
    for name, endpoint, values in NEUTRAL:
        taken = [json.loads(value) for value in re.findall(r"`(.+?)`", values)]
        for value in [None, *taken]:
            bodies.append((endpoint, body(endpoint, name, value)))
            expected.append((200, None))
        if values.startswith("any"):
            continue
        bodies += [(endpoint, body(endpoint, name, value)) for value in OTHERS]
        expected += [(400, name)] * len(OTHERS)
    got = statuses(service, bodies)
    assert [(b, g) for (_, b), g, e in zip(bodies, got, expected, strict=True) if g != e] == []


def test_neutral_values_change_no_prompt_and_no_sampling(service: ScriptedService) -> None:
    # every neutral value of a chat at once, as clients send them: the engine is asked the same as without them
    values = {
        name: json.loads(re.findall(r"`(.+?)`", values)[0])
        for name, endpoint, values in NEUTRAL
        if endpoint == "chat" and "`" in values
    }
    assert len(values) > 15
    service.asked.clear()
    assert statuses(service, [("chat", chat()), ("chat", chat(**values))]) == [(200, None)] * 2
    assert service.asked[0] == service.asked[1]


def test_a_refusal_names_parameter_and_neutral_values(service: ScriptedService) -> None:
    async def ask() -> str:
        async with caller(scripted_app(service.tokenizer, service)) as client:
            answer = await client.post(PATHS["chat"], json=chat(length_penalty=0.5))
        message: str = answer.json()["error"]["message"]
        return message

    message = asyncio.run(ask())
    assert message.startswith("length_penalty: 0.5 is not supported")
    assert "only 1 (or null)" in message
