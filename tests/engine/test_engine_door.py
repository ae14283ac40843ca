"""What comes in at the server's door: bodies that are wrong in one place, and the place that the refusal names."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import openai.types.chat
import pytest
from scripted_service import NAME, ScriptedService, caller, chat, scripted_app
from small_tokenizer import write_tokenizer

from flagrelease.engine.text import Tokenizer
from flagrelease.model.v4.chat import encode_messages
from flagrelease.model.v4.efforts import efforts_of

TOOL = {"type": "function", "function": {"parameters": {"type": "object", "x": None}, "name": "f", "description": "d"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "ok"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture
def service(tokenizer: Tokenizer) -> ScriptedService:
    return ScriptedService(tokenizer)


def send(service: ScriptedService, method: str, path: str, **what: Any) -> httpx2.Response:
    async def call() -> httpx2.Response:
        async with caller(scripted_app(service.tokenizer, service)) as client:
            return await client.request(method, path, **what)

    return asyncio.run(call())


def post(service: ScriptedService, body: Any, path: str = "/v1/chat/completions") -> httpx2.Response:
    # written with escapes, as clients of other languages do: half a surrogate pair goes through
    return send(service, "POST", path, content=json.dumps(body), headers={"content-type": "application/json"})


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    document = answer.json()
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = document["error"]
    return error


def message(**keys: Any) -> dict[str, Any]:
    return {"messages": [keys]}


def called(**keys: Any) -> dict[str, Any]:
    question = {"role": "user", "content": "go"}
    return {"messages": [question, {"role": "assistant", "content": None, **keys}, RESULT]}


def call_with(**function: Any) -> dict[str, Any]:
    return called(tool_calls=[{**CALL, "function": {"name": "f", **function}}])


# Requests of 2026-11-30 that ended in HTTP 500, were answered as something else or named no place, and their kinds.
WRONG: list[tuple[dict[str, Any], str]] = [
    (message(role="user", content=5), "messages[0].content"),
    (message(role="user", content=True), "messages[0].content"),
    (message(role="user", content=None), "messages[0].content"),
    (message(role="user"), "messages[0].content"),
    (message(role="user", content={"type": "text", "text": "hi"}), "messages[0].content"),
    (message(role="user", content=["hi"]), "messages[0].content[0]"),
    (message(role="user", content=[["hi"]]), "messages[0].content[0]"),
    (message(role="user", content=[{"type": "text"}]), "messages[0].content[0].text"),
    (message(role="user", content=[{"type": "text", "text": None}]), "messages[0].content[0].text"),
    (message(role="user", content=[{"type": "text", "text": 1}]), "messages[0].content[0].text"),
    (message(role="user", content=[{"text": "hi"}]), "messages[0].content[0].type"),
    (message(role="user", content=[{"type": "image_url", "image_url": {"url": "x"}}]), "messages[0].content[0].type"),
    (message(role="user", content="a\ud83d b"), "messages[0].content"),
    (message(role="user", content=[{"type": "text", "text": "\udc00"}]), "messages[0].content[0].text"),
    (message(content="hi"), "messages[0]"),
    (message(role=None, content="hi"), "messages[0]"),
    (message(role="wizard", content="hi"), "messages[0]"),
    (message(role=["user"], content="hi"), "messages[0]"),
    (message(role="function", name="f", content="hi"), "messages[0]"),
    (message(role="user", content="hi", colour="red"), "messages[0].colour"),
    (message(role="user", content="hi", task=5), "messages[0].task"),
    (message(role="user", content="hi", task=["action"]), "messages[0].task"),
    (message(role="user", content="hi", task="dance"), "messages[0].task"),
    (message(role="user", content="hi", name=3), "messages[0].name"),
    (message(role="system", content="hi", tools=[{"function": 3}]), "messages[0].tools[0].function"),
    (message(role="user", content="hi", prefix=True), "messages[0].prefix"),
    (chat(messages=[{"role": "user", "content": "x"}], continue_final_message=True), "messages"),
    (chat(messages=[{"role": "user", "content": "x"}], add_generation_prompt=False), "add_generation_prompt"),
    (message(role="assistant", content="hi", reasoning_content=["x"]), "messages[0].reasoning_content"),
    (message(role="tool", content={"ok": 1}), "messages[0].content"),
    (message(role="tool", tool_call_id=["x"], content="hi"), "messages[0].tool_call_id"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [None]}, "messages[0]"),
    ({"messages": []}, "messages"),
    ({"messages": {}}, "messages"),
    ({"messages": None}, "messages"),
    (call_with(arguments={"x": 1}), "messages[1].tool_calls[0].function.arguments"),
    (call_with(arguments=None), "messages[1].tool_calls[0].function.arguments"),
    (call_with(arguments=["{}"]), "messages[1].tool_calls[0].function.arguments"),
    (call_with(), "messages[1].tool_calls[0].function.arguments"),
    (call_with(arguments="{}", name=None), "messages[1].tool_calls[0].function.name"),
    (call_with(arguments="{}", name=""), "messages[1].tool_calls[0].function.name"),
    (called(tool_calls={}), "messages[1].tool_calls"),
    (called(tool_calls="f"), "messages[1].tool_calls"),
    (called(tool_calls=[None]), "messages[1].tool_calls[0]"),
    (called(tool_calls=[{"id": "c", "type": "function", "name": "f"}]), "messages[1].tool_calls[0].function"),
    (called(tool_calls=[{**CALL, "type": "custom"}]), "messages[1].tool_calls[0].type"),
    (called(tool_calls=[{**CALL, "id": 7}]), "messages[1].tool_calls[0].id"),
    ({"tools": {}}, "tools"),
    ({"tools": [3]}, "tools[0]"),
    ({"tools": [{"type": "function", "name": "f", "parameters": {}}]}, "tools[0].function"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{**TOOL, "function": {"description": "d"}}]}, "tools[0].function.name"),
    *(({"tools": [{**TOOL, "function": {"name": name}}]}, "tools[0].function.name")
      for name in ("a b", 'a"b', "a.b", "é", "", "a" * 129)),
    ({"tools": [TOOL, TOOL]}, "tools"),
    (message(role="system", content="hi", tools=[TOOL, TOOL]), "messages[0].tools"),
    ({"tools": [{**TOOL, "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
    ({"tools": [{**TOOL, "function": {"name": "f", "parameters": {"a": ["\ud800"]}}}]},
     "tools[0].function.parameters.a[0]"),
    ({"tools": [{**TOOL, "function": {"name": "f", "strict": "yes"}}]}, "tools[0].function.strict"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "must", "tools": [TOOL]}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "other"}}, "tools": [TOOL]}, "tool_choice"),
    ({"tool_choice": {"type": "function"}, "tools": [TOOL]}, "tool_choice.function"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_tokens": "4"}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": {"a": 1}}, "stop"),
    ({"stop": ["a", 5]}, "stop[1]"),
    ({"seed": 1.5}, "seed"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": []}, "stream_options"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"logprobs": 5}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"thinking": {"type": "maybe"}}, "thinking.type"),
    ({"thinking": "enabled"}, "thinking"),
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ({"reasoning_effort": 101}, "reasoning_effort"),
    ({"reasoning_effort": 60}, "reasoning_effort"),
    ({"reasoning_effort": True}, "reasoning_effort"),
    ({"top_k": 2**70}, "top_k"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"5": "x"}}, "logit_bias.5"),
    ({"logit_bias": {"five": 1}}, "logit_bias.five"),
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"max_tokens": 10**6}, "messages"),
    ({"metadata": "x"}, "metadata"),
    ({"temperatur": 1}, "temperatur"),
    ({"a\ud800": 1}, None),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param"), WRONG)
def test_a_malformed_body_is_refused_at_its_place(
    service: ScriptedService, change: dict[str, Any], param: str | None
) -> None:
    answer = post(service, chat() | change)
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert (param or "") in error["message"] or param in ("top_logprobs", "messages")
    assert service.asked == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": [1, 2, 999999]}, "prompt"),
        ({"prompt": [1, -2]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [1, True]}, "prompt[1]"),
        ({"prompt": [[1], [None]]}, "prompt[1][0]"),
        ({"prompt": ["a\ud800"]}, "prompt[0]"),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": "yes"}, "echo"),
        ({"messages": []}, "messages"),
    ],
)
def test_a_malformed_completion_is_refused_at_its_place(
    service: ScriptedService, change: dict[str, Any], param: str
) -> None:
    answer = post(service, {"model": NAME, "prompt": "x", "max_tokens": 2} | change, "/v1/completions")
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"not json", "not JSON"),
        (b"", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"model": "\xff"}', "not JSON"),
        (b'{"model": NaN}', "not JSON"),
        (b'{"temperature": 1e999}', "too large"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"model": "a", "model": "b"}', "appears twice"),
        (b'{"tools": ' + b"[" * 150 + b"]" * 150 + b"}", "levels deep"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_body_that_is_no_request(service: ScriptedService, raw: bytes, said: str) -> None:
    answer = send(service, "POST", "/v1/completions", content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert said in error_of(answer)["message"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/problem+json"])
def test_a_body_of_another_type_is_not_read(service: ScriptedService, kind: str | None) -> None:
    # A page in a browser can send text/plain to any address without being asked. FastAPI takes everything that ends in
    # "+json": 16 MiB of it were parsed in the event loop, and all streams stood still for seconds.
    headers = {} if kind is None else {"content-type": kind}
    answer = send(service, "POST", "/v1/chat/completions", content=json.dumps(chat()), headers=headers)
    assert answer.status_code == 400
    assert "application/json" in error_of(answer)["message"]


def test_an_unknown_model_is_not_found(service: ScriptedService) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        body = chat(model="other") if "chat" in path else {"model": "other", "prompt": "x"}
        answer = post(service, body, path)
        error = error_of(answer)
        assert (answer.status_code, error["param"], error["code"]) == (404, "model", "model_not_found")
        assert NAME in error["message"]


def test_paths_and_methods_that_are_not_there_have_the_error_object(service: ScriptedService) -> None:
    nowhere, wrong = send(service, "GET", "/v1/engines"), send(service, "GET", "/v1/completions")
    assert (nowhere.status_code, wrong.status_code) == (404, 405)
    assert "/v1/engines" in error_of(nowhere)["message"]
    assert "GET" in error_of(wrong)["message"]
    assert wrong.headers["allow"] == "POST"
    assert send(service, "DELETE", "/v1/models").headers["allow"] == "GET, HEAD"


def test_an_unknown_parameter_is_told_in_words(service: ScriptedService) -> None:
    error = error_of(post(service, chat(stream_options={"colour": 1}, stream=True)))
    assert error["message"] == "Unknown parameter: 'stream_options.colour'"
    assert error["code"] == "unknown_parameter"


def test_null_means_absent_wherever_a_key_may_be_left_out(service: ScriptedService) -> None:
    keys = [
        "temperature", "top_p", "n", "stream", "stop", "seed", "max_tokens", "logprobs", "top_logprobs",
        "stream_options", "user", "reasoning_effort", "tools", "tool_choice", "thinking", "metadata", "logit_bias",
        "response_format",
    ]  # fmt: skip
    answer = post(service, chat(**dict.fromkeys(keys)))
    assert answer.status_code == 200, answer.text
    completion = post(service, {"model": NAME, "prompt": "x", "max_tokens": None, "echo": None}, "/v1/completions")
    assert completion.status_code == 200
    assert service.asked[-1][1].max_tokens == 16  # OpenAI's default


def test_what_openais_client_keeps_of_an_answer_can_be_sent_again(service: ScriptedService) -> None:
    kept = openai.types.chat.ChatCompletionMessage.model_validate({"role": "assistant", "content": "Hello"})
    history = [{"role": "user", "content": "hi"}, kept.model_dump(), {"role": "user", "content": "and?"}]
    nulls = {"refusal": None, "annotations": None, "audio": None, "function_call": None, "tool_calls": None}
    history[1] = {**history[1], **nulls}
    assert post(service, chat(messages=history)).status_code == 200


def test_the_prompt_shows_messages_and_tools_as_they_were_sent(service: ScriptedService) -> None:
    # a typed model that is written out again has other keys in another order: DeepSeek's encoding shows them
    history = called(tool_calls=[CALL])["messages"]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]
    history[0] = {"role": "user", "content": parts, "task": None, "name": "me"}
    assert post(service, chat(messages=history, tools=[TOOL], max_tokens=None)).status_code == 200
    plain = [{"role": "user", "content": "a\n\nb"}, *history[1:]]
    assert service.asked[0][0] == service.tokenizer.encode(
        encode_messages(plain, efforts_of("0731").of("chat"), [TOOL])
    )


@pytest.mark.parametrize(
    "arguments", ["", "null", "[]", "3", "{", '{"x": NaN}', '{"x": ' + "9" * 5000 + "}", "[" * 3000, '{"x": "\\ud83d"}']
)
def test_arguments_of_the_history_that_are_no_object_are_shown_to_the_model(
    service: ScriptedService, arguments: str
) -> None:
    # a 400: a conversation in which the model had once written such arguments could never go on
    assert post(service, chat() | call_with(arguments=arguments)).status_code == 200
    assert f'name="arguments" string="true">{arguments}</' in service.tokenizer.decode(service.asked[0][0])


def test_reasoning_of_the_history_counts_under_both_names(service: ScriptedService) -> None:
    # `reasoning`, as newer servers answer and clients send again, was dropped without a word
    for name in ("reasoning_content", "reasoning"):
        history = called(tool_calls=[CALL], **{name: "Because it was asked for."})
        assert post(service, chat(tools=[TOOL], thinking={"type": "enabled"}) | history).status_code == 200
    assert service.asked[0] == service.asked[1]
    assert "Because it was asked for." in service.tokenizer.decode(service.asked[0][0])


@pytest.mark.parametrize("mode", ["enabled", "disabled"])
@pytest.mark.parametrize(
    ("message", "left_open"),
    [
        ({"content": "So"}, "content"),
        ({"reasoning": "Hm"}, "reasoning_content"),
        ({"reasoning": "Hm", "content": "So"}, "content"),
    ],
)
def test_the_last_message_is_continued(
    service: ScriptedService, mode: str, message: dict[str, Any], left_open: str
) -> None:
    # the model was made to write behind the end of the sentence
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", **message}]
    for how in ({"continue_final_message": True, "add_generation_prompt": False}, {}):
        if not how:
            messages[-1]["prefix"] = True
        answer = post(service, chat(messages=messages, thinking={"type": mode}, **how))
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"][left_open] == "Hello world"
        assert not service.tokenizer.decode(service.asked[-1][0]).endswith("<｜end▁of▁sentence｜>")
