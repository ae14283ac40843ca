"""Thousands of bodies that are wrong in random places: every one is answered, or refused in its interface's form."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from pydantic import BaseModel
from scripted_service import NAME, ScriptedService, caller, scripted_app
from small_tokenizer import write_tokenizer

from flagrelease.engine.serve.requests.messages import MessagesRequest
from flagrelease.engine.serve.requests.protocol import ChatRequest, CompletionRequest
from flagrelease.engine.serve.requests.responses import ResponsesRequest
from flagrelease.engine.text import Tokenizer

COUNT = 1000  # for each door
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}
CHAT = {
    "model": NAME, "temperature": 0.5, "top_p": 0.9, "seed": 3, "max_tokens": 4, "stop": ["zz"], "logprobs": True,
    "top_logprobs": 2, "stream": False, "stream_options": {"include_usage": True}, "thinking": {"type": "enabled"},
    "reasoning_effort": "high", "tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "auto",
    "messages": [
        {"role": "system", "content": "Be brief.", "tools": [{"type": "function", "function": FUNCTION}]},
        {"role": "developer", "content": "In French."},
        {"role": "user", "content": [{"type": "text", "text": "go"}, {"type": "text", "text": "on"}], "task": "action"},
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": "1"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "ok"},
        {"role": "latest_reminder", "content": "2026"},
        {"role": "user", "content": "hi"},
    ],
}  # fmt: skip
COMPLETION = {
    "model": NAME, "prompt": ["one", "two"], "max_tokens": 3, "logprobs": 2, "echo": True, "n": 1, "stop": "zz",
    "stream": False, "logit_bias": {}, "user": "me",
}  # fmt: skip
RESPONSES = {
    "model": NAME, "instructions": "Be brief.", "temperature": 0.5, "max_output_tokens": 4, "store": False,
    "reasoning": {"effort": "high", "summary": "auto"}, "text": {"format": {"type": "text"}}, "tool_choice": "auto",
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}], "stream": False,
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "go"}]},
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": "1"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "ok"},
    ],
}  # fmt: skip
MESSAGES = {
    "model": NAME, "system": [{"type": "text", "text": "Be brief."}], "temperature": 0.5, "max_tokens": 2000,
    "top_k": 3, "thinking": {"type": "enabled", "budget_tokens": 1024}, "tool_choice": {"type": "auto"},
    "stop_sequences": ["zz"],
    "tools": [{"name": "f", "input_schema": {"type": "object"}}], "stream": False, "metadata": {"user_id": "me"},
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "go"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": ""}, {"type": "text", "text": "ok"},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "ok", "is_error": False}]},
    ],
}  # fmt: skip
DOORS: dict[str, tuple[dict[str, Any], type[BaseModel]]] = {
    "/v1/chat/completions": (CHAT, ChatRequest),
    "/v1/completions": (COMPLETION, CompletionRequest),
    "/v1/responses": (RESPONSES, ResponsesRequest),
    "/v1/messages": (MESSAGES, MessagesRequest),
}
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**70, 1.5, -0.0, 1e308, "", "x", "\ud83d", "\u2028", "</think>", "<｜User｜>", "{",
    "[]", '{"x": 1}', "null", "NaN", "9" * 5000, "[" * 2000, [], {}, [[]], [{}], [None], ["x"], [1], {"type": "text"},
    {"role": "user"},
    {"type": "function"}, {"": 1}, {"\udfff": 1}, {"type": "json_object"}, "required", "assistant", "tool", "action",
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in `value` with each of its keys."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def spoil(body: dict[str, Any], names: list[str], chance: random.Random) -> dict[str, Any]:
    """Change one to three places: another value, none, the same twice, a value from elsewhere, a new key."""
    body = copy.deepcopy(body)
    for _ in range(chance.choice((1, 1, 2, 3))):
        all_places = list(places(body))
        if not all_places:
            break
        container, key = chance.choice(all_places)
        kind = chance.randrange(5)
        if kind == 0:
            container[key] = copy.deepcopy(chance.choice(VALUES))
        elif kind == 1:
            del container[key]
        elif kind == 2 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif kind == 3:
            other, place = chance.choice(all_places)
            container[key] = copy.deepcopy(other[place])
        else:
            body[chance.choice(names)] = copy.deepcopy(chance.choice(VALUES))
    return body


def tokenizer_in(folder: Path) -> Tokenizer:
    write_tokenizer(folder)
    return Tokenizer(folder)


@pytest.mark.parametrize("path", DOORS)
def test_no_body_ends_in_a_traceback(path: str, tmp_path: Path) -> None:
    whole, model = DOORS[path]
    chance = random.Random(path)
    app = scripted_app(tokenizer_in(tmp_path))
    statuses = Counter[int]()

    async def ask() -> None:
        async with caller(app) as client:  # a traceback of the application would be raised here
            for n in range(COUNT):
                body = spoil(whole, [*model.model_fields, "colour"], chance)
                raw = json.dumps(body)
                if n % 50 == 0:
                    raw = raw[: chance.randrange(len(raw))]
                answer = await client.post(path, content=raw, headers={"content-type": "application/json"})
                statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    continue
                error = answer.json()["error"]
                assert answer.status_code in (400, 404), (answer.status_code, raw)
                assert error["message"], raw
                assert error["type"] in ("invalid_request_error", "not_found_error"), raw

    asyncio.run(ask())
    assert min(statuses[200], statuses[400]) > COUNT // 10, statuses  # the bodies try both sides


def test_the_fuzz_sees_a_planted_fault(tmp_path: Path) -> None:
    app = scripted_app(tokenizer_in(tmp_path), service := ScriptedService(tokenizer_in(tmp_path)))

    @app.post("/planted")
    async def planted(request: Request) -> int:
        return len((await request.json())["messages"][0]["content"])

    async def ask() -> bool:
        async with caller(app) as client:
            try:
                await client.post("/planted", json={"messages": [{"content": 5}]})
            except TypeError:
                return True
        return False

    assert asyncio.run(ask())
    assert service.asked == []
