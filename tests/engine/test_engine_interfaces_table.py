"""The tables of docs/serving.md for Responses and Messages are what the server does, as those of chats are."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from scripted_service import NAME, ScriptedService, caller, scripted_app
from small_tokenizer import write_tokenizer

from flagrelease.engine.serve.requests.messages import MessagesRequest
from flagrelease.engine.serve.requests.responses import ResponsesRequest
from flagrelease.engine.text import Tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
ROW = re.compile(r"^\| `(\w+)` \| (.+) \|$", re.MULTILINE)
OTHERS: list[Any] = [7.25, "seven", ["seven"], {"seven": 7}]  # at least two of them are no value of any parameter
MODELS: dict[str, type[BaseModel]] = {"Responses": ResponsesRequest, "Messages": MessagesRequest}
PATHS = {"Responses": "/v1/responses", "Messages": "/v1/messages"}
BODIES: dict[str, dict[str, Any]] = {
    "Responses": {"model": NAME, "input": "hi"},
    "Messages": {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
}


def rows(section: str, neutral: bool) -> list[tuple[str, str]]:
    """Parameter and values of a table."""
    done, _, rest = PAGE.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0].partition("Accepted at values")
    return ROW.findall(rest if neutral else done)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> ScriptedService:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return ScriptedService(Tokenizer(folder))


def answers(service: ScriptedService, section: str, changes: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """Status and text of each."""

    async def ask() -> list[tuple[int, str]]:
        async with caller(scripted_app(service.tokenizer, service)) as client:
            sent = [await client.post(PATHS[section], json={**BODIES[section], **each}) for each in changes]
        return [(each.status_code, each.text) for each in sent]

    return asyncio.run(ask())


@pytest.mark.parametrize("section", MODELS)
def test_every_parameter_is_in_one_table(section: str) -> None:
    told = [name for neutral in (False, True) for name, _ in rows(section, neutral)]
    assert sorted(told) == sorted(MODELS[section].model_fields)


@pytest.mark.parametrize("section", MODELS)
def test_neutral_values_are_accepted_and_no_others(service: ScriptedService, section: str) -> None:
    changes: list[dict[str, Any]] = []
    expected: list[bool] = []
    for name, values in rows(section, True):
        taken = [json.loads(value) for value in re.findall(r"`(.+?)`", values)]
        changes += [{name: value} for value in (None, *taken)]
        expected += [True] * (1 + len(taken))
        if not values.startswith("any"):
            changes += [{name: value} for value in OTHERS]
            expected += [False] * len(OTHERS)
    got = answers(service, section, changes)
    wrong = [
        (change, status, text)
        for change, (status, text), fine in zip(changes, got, expected, strict=True)
        if status != (200 if fine else 400) or (not fine and next(iter(change)) not in text)
    ]
    assert wrong == []


@pytest.mark.parametrize("section", MODELS)
def test_neutral_values_change_no_prompt_and_no_sampling(service: ScriptedService, section: str) -> None:
    neutral = {
        name: json.loads(re.findall(r"`(.+?)`", values)[0]) for name, values in rows(section, True) if "`" in values
    }
    assert len(neutral) > 3
    service.asked.clear()
    assert [status for status, _ in answers(service, section, [{}, neutral])] == [200, 200]
    assert service.asked[0] == service.asked[1]
