"""/v1/messages without a model: prompts are those of the same chat; answers, events and errors have Anthropic's form.

The forms are those of Anthropic's documentation; `tests/clients` has its own client read them.
"""

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path
from typing import Any

import httpx2
import pytest
from scripted_service import CONTEXT, NAME, ScriptedService, caller, chat, scripted_app
from small_tokenizer import write_tokenizer

from flagrelease.engine.serve.guard import Guard
from flagrelease.engine.serve.requests.messages import MessagesRequest
from flagrelease.engine.text import Tokenizer
from flagrelease.model.v4.chat import DSML

PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object", "x": None}}
SAID = [
    "Let me", " see", "</think>Hi", " there\n\n", f'<{DSML}tool_calls>\n<{DSML}invoke name="f">\n',
    f'<{DSML}parameter name="n" string="false">12345678901234567890.5', f"0</{DSML}parameter>\n</{DSML}invoke>\n"
    f"</{DSML}tool_calls>",
]  # fmt: skip
THINKS: dict[str, Any] = {"thinking": {"type": "adaptive"}, "tools": [TOOL]}  # without tools, markup of a call is text


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture
def service(tokenizer: Tokenizer) -> ScriptedService:
    return ScriptedService(tokenizer)


def post(service: ScriptedService, body: Any, path: str = PATH, **headers: str) -> httpx2.Response:
    async def call() -> httpx2.Response:
        async with caller(scripted_app(service.tokenizer, service)) as client:
            sent = {
                "content-type": "application/json",
                **{key.replace("_", "-"): each for key, each in headers.items()},
            }
            return await client.post(path, content=json.dumps(body), headers=sent)

    return asyncio.run(call())


def body(**changes: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, **changes}


def prompts(service: ScriptedService, ours: dict[str, Any], chat_: dict[str, Any]) -> tuple[str, str]:
    """Of a request of either interface, as text."""
    service.asked.clear()
    for path, sent in ((PATH, ours), ("/v1/chat/completions", chat_)):
        answer = post(service, sent, path)
        assert answer.status_code == 200, answer.text
    (first, _), (second, _) = service.asked
    return service.tokenizer.decode(first), service.tokenizer.decode(second)


USER = {"role": "user", "content": "go"}
USE = {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": "ok"}
SECOND = {**RESULT, "tool_use_id": "c2", "content": [{"type": "text", "text": "2"}]}
THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
CHAT_RESULT = {"role": "tool", "tool_call_id": "c1", "content": "ok"}
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "text": ([USER], [USER]),
    "blocks": (
        [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
                                      {"type": "text", "text": "b"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    ),
    "a call and its result": (
        [USER, {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "Wait."}, USE]},
         {"role": "user", "content": [{**RESULT, "is_error": True}, {"type": "text", "text": "and?"}]}],
        [USER, {"role": "assistant", "reasoning_content": "Hm.", "content": "Wait.", "tool_calls": [CHAT_CALL]},
         CHAT_RESULT, {"role": "user", "content": "and?"}],
    ),
    "two results": (
        [USER, {"role": "assistant", "content": [USE, {**USE, "id": "c2"}]},
         {"role": "user", "content": [RESULT, SECOND]}],
        [USER, {"role": "assistant", "tool_calls": [CHAT_CALL, {**CHAT_CALL, "id": "c2"}]}, CHAT_RESULT,
         {"role": "tool", "tool_call_id": "c2", "content": "2"}],
    ),
    "an answer that is begun": (
        [USER, {"role": "assistant", "content": "The best is ("}],
        [USER, {"role": "assistant", "content": "The best is (", "prefix": True}],
    ),
    "a system message later on": (
        [USER, {"role": "system", "content": "Now!"}, USER],
        [USER, {"role": "system", "content": "Now!"}, USER],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("mode", [{"type": "disabled"}, {"type": "adaptive"}])
def test_the_prompt_is_that_of_the_same_chat(service: ScriptedService, name: str, mode: dict[str, str]) -> None:
    blocks, messages = CONVERSATIONS[name]
    function = {"name": "f", "description": "d", "parameters": TOOL["input_schema"]}
    ours, chats = prompts(
        service,
        body(messages=blocks, system=[{"type": "text", "text": "Be kind."}], tools=[TOOL], thinking=mode),
        chat(
            messages=[{"role": "system", "content": "Be kind."}, *messages],
            tools=[{"type": "function", "function": function}],
            thinking={"type": "disabled" if mode["type"] == "disabled" else "enabled"},
        ),
    )
    assert ours == chats


def test_sampling_is_that_of_the_chat(service: ScriptedService) -> None:
    service.asked.clear()
    post(service, body(temperature=0.5, top_p=0.25, top_k=3, stop_sequences=["END"]))
    post(service, chat(temperature=0.5, top_p=0.25, top_k=3, stop=["END"], max_tokens=50), "/v1/chat/completions")
    assert service.asked[0][1] == service.asked[1][1]


def test_tokens_are_counted_as_they_are_asked_for(service: ScriptedService) -> None:
    asked = body(system="Be kind.", **THINKS)
    del asked["max_tokens"]
    counted = post(service, asked, COUNT).json()
    assert service.asked == []
    usage = post(service, {**asked, "max_tokens": 5}).json()["usage"]
    assert counted == {"input_tokens": usage["input_tokens"]} == {"input_tokens": len(service.asked[0][0])}


def test_a_whole_answer(service: ScriptedService) -> None:
    service.pieces = SAID
    answer = post(service, body(**THINKS))
    message = answer.json()
    thought, text, use = message["content"]
    assert thought == {"type": "thinking", "thinking": "Let me see", "signature": ""}
    assert text == {"type": "text", "text": "Hi there"}
    assert (use["type"], use["name"]) == ("tool_use", "f")
    assert '"input": {"n": 12345678901234567890.50}' in answer.text  # not a digit is lost
    assert (message["stop_reason"], message["stop_sequence"]) == ("tool_use", None)
    assert message["usage"]["output_tokens"] == 7
    assert message["usage"]["output_tokens_details"] == {"thinking_tokens": 3}
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", NAME)


def events(answer: httpx2.Response) -> list[dict[str, Any]]:
    found = []
    for block in answer.text.removesuffix("\n\n").split("\n\n"):
        kind, data = block.split("\n")
        document = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {document['type']}"
        found.append(document)
    return found


def test_the_events_of_a_stream(service: ScriptedService) -> None:
    service.pieces = SAID
    sent = events(post(service, body(stream=True, **THINKS)))
    start, stop = "content_block_start", "content_block_stop"
    kinds = [each["delta"]["type"] if each["type"] == "content_block_delta" else each["type"] for each in sent]
    assert kinds == [
        "message_start", "ping", start, "thinking_delta", "thinking_delta", stop, start, "text_delta", "text_delta",
        stop, start, *["input_json_delta"] * (len(sent) - 14), stop, "message_delta", "message_stop",
    ]  # fmt: skip
    assert [each["index"] for each in sent if each["type"] in (start, stop)] == [0, 0, 1, 1, 2, 2]
    arguments = [
        each["delta"]["partial_json"] for each in sent if each.get("delta", {}).get("type") == "input_json_delta"
    ]
    assert "".join(arguments) == '{"n": 12345678901234567890.50}'
    assert len(arguments) > 1
    first = sent[0]["message"]
    assert (first["content"], first["stop_reason"], first["usage"]["output_tokens"]) == ([], None, 0)
    assert sent[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert sent[-2]["usage"]["output_tokens"] == 7


def test_why_it_ended(service: ScriptedService) -> None:
    def reason(**changes: Any) -> tuple[str, str | None]:
        answer = post(service, body(**changes)).json()
        return answer["stop_reason"], answer["stop_sequence"]

    assert reason() == ("end_turn", None)
    service.stopped_by = "END"
    assert reason(stop_sequences=["END"]) == ("stop_sequence", "END")
    service.stopped_by, service.finish = None, "length"
    assert reason(max_tokens=2) == ("max_tokens", None)  # the scripted answer has two tokens
    assert reason(max_tokens=50) == ("max_tokens", None)  # a constraint took too much work
    assert reason(max_tokens=CONTEXT) == ("model_context_window_exceeded", None)


def test_half_a_call_has_the_input_that_came(service: ScriptedService) -> None:
    service.finish = "length"
    service.pieces = [f'<{DSML}invoke name="f">\n<{DSML}parameter name="city" string="true">Bei']
    answer = post(service, body(max_tokens=1, tools=[TOOL])).json()
    assert (answer["content"][0]["input"], answer["stop_reason"]) == ({"city": "Bei"}, "max_tokens")


def test_an_engine_that_stops_is_an_error(service: ScriptedService) -> None:
    service.finish = None
    last = events(post(service, body(stream=True)))[-1]
    assert last == {"type": "error", "error": {"type": "api_error", "message": "the engine has stopped"}}
    whole = post(service, body())
    assert (whole.status_code, whole.json()["error"]["type"]) == (503, "api_error")


def test_an_answer_goes_back_in_as_it_came(service: ScriptedService) -> None:
    service.pieces = SAID
    content = post(service, body(**THINKS)).json()["content"]
    result = {"type": "tool_result", "tool_use_id": content[2]["id"], "content": "22"}
    asked = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content},
             {"role": "user", "content": [result]}]  # fmt: skip
    service.asked.clear()
    again = post(service, body(messages=asked, **THINKS))
    assert again.status_code == 200, again.text
    prompt = service.tokenizer.decode(service.asked[0][0])
    assert "<think>Let me see</think>Hi there\n\n" in prompt
    assert prompt.endswith("<｜User｜><tool_result>22</tool_result><｜Assistant｜><think>")


WANTED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
    ({"tool_choice": {"type": "tool", "name": "f"}}, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
    ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, {"parallel_tool_calls": False}),
    ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "integer"}}}, "tools": []},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "output", "schema": {"type": "integer"},
                                                                    "strict": True}}, "tools": []},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "chats"), WANTED)
def test_what_is_wanted_is_wanted_of_the_chat(
    service: ScriptedService, ours: dict[str, Any], chats: dict[str, Any]
) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    same = prompts(service, body(tools=[{**TOOL, "input_schema": {"type": "object"}}])
                   | ours, chat(tools=[tool], max_tokens=50) | chats)  # fmt: skip
    assert same[0] == same[1]
    held = [sampling.constraint is not None for _, sampling in service.asked]
    assert held == [ours.get("tool_choice") != {"type": "none"}] * 2


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages: List should have at least 1 item"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content: Input should be a string or a list"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]: Input should be an object with a role"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]: "),
    ({"messages": [{"role": "user", "content": [USE]}]}, "messages[0].content[0]: "),
    ({"messages": [USER, {"role": "assistant", "content": [RESULT]}]}, "messages[1].content[0]: "),
    ({"messages": [USER, {"role": "assistant", "content": [{**USE, "input": "{}"}]}]},
     "messages[1].content[0].input: "),
    ({"messages": [USER, {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}]},
     "messages[1].content[0]: "),
    ({"messages": [USER, {"role": "assistant", "content": [USE]}]}, "messages: prefix"),
    ({"system": 5}, "system: Input should be a string or a list of blocks"),
    ({"max_tokens": 0}, "max_tokens: "),
    ({"max_tokens": None}, "max_tokens: "),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, 'tools[0].type: "web_search_20250305"'),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema: Field required"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice: a name belongs to"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": [{**TOOL, "input_schema": {"type": "nothing"}, "strict": True}]}, "tools[0].input_schema: "),
    ({"thinking": {"type": "enabled"}}, "thinking: budget_tokens belongs to"),
    ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "thinking.budget_tokens: "),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens: 1024 must be less"),
    ({"thinking": {"type": "between_tools"}}, "thinking.type: "),
    ({"stop_sequences": [""]}, "stop_sequences[0]: "),
    ({"temperature": "1"}, "temperature: "),
    ({"output_config": {"effort": "utmost"}}, "output_config.effort: "),
    ({"prompt": "x"}, "Unknown parameter: 'prompt'"),
    ({"messages": [{"role": "user", "content": "x" * 9000}]}, "messages: "),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_anthropics_and_name_the_place(
    service: ScriptedService, changes: dict[str, Any], words: str, stream: bool
) -> None:
    answer = post(service, body(**changes, stream=stream))
    document = answer.json()
    assert (answer.status_code, document["type"], document["error"]["type"]) == (400, "error", "invalid_request_error")
    assert document["error"]["message"].startswith(words)


def test_a_checked_request_goes_between_processes() -> None:
    # as large bodies do, which are checked by processes of their own
    request = MessagesRequest.model_validate(body(system="Be kind.", stop_sequences=["END"], **THINKS))
    assert pickle.loads(pickle.dumps(request)).chat() == request.chat()


def test_other_refusals_have_the_form_too(service: ScriptedService) -> None:
    other = post(service, body(model="other"))
    assert (other.status_code, other.json()["error"]["type"]) == (404, "not_found_error")
    long = post(service, body(system="x" * (16 * 2**20)))
    assert (long.status_code, long.json()["error"]["type"]) == (413, "request_too_large")
    old = post(service, body(), anthropic_version="2023-01-01")
    assert (old.status_code, old.json()["error"]["type"]) == (400, "invalid_request_error")
    for version in ("2023-06-01", "2026-10-21"):
        assert post(service, body(temperature=0.5), anthropic_version=version).status_code == 200
    nothing = post(service, {}, "/v1/messages/batches")
    assert (nothing.status_code, nothing.json()["error"]["type"]) == (404, "not_found_error")


def test_a_missing_key_is_anthropics_error(service: ScriptedService) -> None:
    app = Guard(scripted_app(service.tokenizer, service), "secret")

    async def call(headers: dict[str, str]) -> httpx2.Response:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post(PATH, json=body(), headers=headers)

    refused = asyncio.run(call({}))
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
    assert asyncio.run(call({"x-api-key": "secret"})).status_code == 200
    assert asyncio.run(call({"authorization": "Bearer secret"})).status_code == 200
