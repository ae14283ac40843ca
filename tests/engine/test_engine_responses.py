"""/v1/responses without a model: prompts are those of the same chat, and OpenAI's own client reads the answers."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from scripted_service import NAME, ScriptedService, caller, chat, scripted_app
from small_tokenizer import write_tokenizer

from flagrelease.engine.serve.requests.responses import ResponsesRequest
from flagrelease.engine.text import Tokenizer
from flagrelease.model.v4.chat import DSML

T = TypeVar("T")
PATH = "/v1/responses"
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object", "x": None}}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "ok"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
SAID = [
    "Let me", " see", "</think>Hi", " there\n\n", f'<{DSML}tool_calls>\n<{DSML}invoke name="f">\n',
    f'<{DSML}parameter name="city" string="true">Bei', f"jing</{DSML}parameter>\n</{DSML}invoke>\n</{DSML}tool_calls>",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture
def service(tokenizer: Tokenizer) -> ScriptedService:
    return ScriptedService(tokenizer)


def post(service: ScriptedService, body: Any, path: str = PATH) -> httpx2.Response:
    async def call() -> httpx2.Response:
        async with caller(scripted_app(service.tokenizer, service)) as client:
            return await client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})

    return asyncio.run(call())


def ask(service: ScriptedService, work: Callable[[openai.AsyncOpenAI], Awaitable[T]]) -> T:
    """By OpenAI's client."""

    async def call() -> T:
        async with caller(scripted_app(service.tokenizer, service)) as http:
            client = openai.AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=http, max_retries=0)
            return await work(client)

    return asyncio.run(call())


def body(**changes: Any) -> dict[str, Any]:
    return {"model": NAME, "input": "hi", **changes}


TOOLS: Any = [TOOL]  # without tools, the markup of a call is text


def prompts(service: ScriptedService, response: dict[str, Any], chat_: dict[str, Any]) -> tuple[str, str]:
    """Of a request of either interface, as text."""
    service.asked.clear()
    for path, sent in ((PATH, response), ("/v1/chat/completions", chat_)):
        answer = post(service, sent, path)
        assert answer.status_code == 200, answer.text
    (first, _), (second, _) = service.asked
    return service.tokenizer.decode(first), service.tokenizer.decode(second)


CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
USER, RESULT = {"role": "user", "content": "go"}, {"role": "tool", "tool_call_id": "c1", "content": "ok"}
CONVERSATIONS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "text": ("go", [USER]),
    "messages": (
        [USER, {"role": "assistant", "content": "gone"}, {"role": "user", "content": "back"}],
        [USER, {"role": "assistant", "content": "gone"}, {"role": "user", "content": "back"}],
    ),
    "parts": (
        [{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "D"}]},
         {"type": "message", "role": "user",
          "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}],
        [{"role": "developer", "content": "D"},
         {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    ),
    "a call and its output": (
        [USER, THOUGHT, {"role": "assistant", "content": "Wait."}, CALL, OUTPUT],
        [USER, {"role": "assistant", "reasoning_content": "Hm.", "content": "Wait.", "tool_calls": [CHAT_CALL]},
         RESULT],
    ),
    "two calls without a text": (
        [USER, CALL, {**CALL, "call_id": "c2"}, OUTPUT,
         {**OUTPUT, "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]}],
        [USER, {"role": "assistant", "tool_calls": [CHAT_CALL, {**CHAT_CALL, "id": "c2"}]}, RESULT,
         {"role": "tool", "tool_call_id": "c2", "content": "2"}],
    ),
    "two answers in a row": (
        [USER, {"role": "assistant", "content": "one"}, THOUGHT, {"role": "assistant", "content": "two"}, USER],
        [USER, {"role": "assistant", "content": "one"},
         {"role": "assistant", "reasoning_content": "Hm.", "content": "two"}, USER],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("effort", ["none", "high", "max"])
def test_the_prompt_is_that_of_the_same_chat(service: ScriptedService, name: str, effort: str) -> None:
    items, messages = CONVERSATIONS[name]
    function = {key: value for key, value in TOOL.items() if key != "type"}
    ours, chats = prompts(
        service,
        body(input=items, instructions="Be kind.", tools=[TOOL], reasoning={"effort": effort}),
        chat(
            messages=[{"role": "system", "content": "Be kind."}, *messages],
            tools=[{"type": "function", "function": function}],
            reasoning_effort=effort,
        ),
    )
    assert ours == chats


def test_sampling_is_that_of_the_chat(service: ScriptedService) -> None:
    service.asked.clear()
    post(service, body(temperature=0.5, top_p=0.25, max_output_tokens=7))
    post(service, chat(temperature=0.5, top_p=0.25, max_tokens=7), "/v1/chat/completions")
    assert service.asked[0][1] == service.asked[1][1]


async def created(client: openai.AsyncOpenAI) -> Response:
    return await client.responses.create(model=NAME, input="hi", reasoning={"effort": "high"}, tools=TOOLS)


def test_the_client_reads_an_answer(service: ScriptedService) -> None:
    service.pieces = SAID
    made = ask(
        service,
        created,
    )
    assert made.output_text == "Hi there"
    assert (made.status, made.error, made.incomplete_details, made.store) == ("completed", None, None, False)
    thought, message, call = made.output
    assert thought.type == "reasoning"
    assert thought.content is not None
    assert thought.content[0].text == "Let me see"
    assert message.type == "message"
    assert call.type == "function_call"
    assert (call.name, call.arguments) == ("f", '{"city": "Beijing"}')
    assert made.usage is not None
    assert (made.usage.output_tokens, made.usage.output_tokens_details.reasoning_tokens) == (7, 3)
    Response.model_validate(made.model_dump(), strict=True)


EVENTS = TypeAdapter[Any](ResponseStreamEvent)


def events(answer: httpx2.Response) -> list[dict[str, Any]]:
    found = []
    for block in answer.text.removesuffix("\n\n").split("\n\n"):
        kind, data = block.split("\n")
        document = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {document['type']}"
        EVENTS.validate_python(document)
        found.append(document)
    return found


def test_the_events_of_a_stream(service: ScriptedService) -> None:
    service.pieces = SAID
    sent = events(post(service, body(stream=True, reasoning={"effort": "high"}, tools=TOOLS)))
    assert [event["sequence_number"] for event in sent] == list(range(len(sent)))
    assert [event["type"].removeprefix("response.") for event in sent] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", *["function_call_arguments.delta"] * 6, "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    final = sent[-1]["response"]
    assert final["output"] == [event["item"] for event in sent if event["type"] == "response.output_item.done"]
    deltas = [event["delta"] for event in sent if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == final["output"][2]["arguments"] == '{"city": "Beijing"}'


def test_a_stream_ends_in_the_whole_answer(service: ScriptedService) -> None:
    service.pieces = SAID

    async def read(client: openai.AsyncOpenAI) -> Any:
        async with client.responses.stream(model=NAME, input="hi", reasoning={"effort": "high"}, tools=TOOLS) as stream:
            return await stream.get_final_response()

    def content(response: Any) -> Any:
        first, message, call = response.output
        return first.content[0].text, message.content[0].text, call.name, call.arguments, response.usage

    whole = ask(
        service,
        created,
    )
    assert content(ask(service, read)) == content(whole)


def test_a_length_limit_makes_it_incomplete(service: ScriptedService) -> None:
    service.pieces, service.finish = SAID[:-1], "length"
    answer = post(service, body(reasoning={"effort": "high"}, tools=TOOLS)).json()
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in answer["output"]] == ["completed", "completed", "incomplete"]
    assert answer["output"][2]["arguments"] == '{"city": "Bei'  # nobody carries out half a call
    last = events(post(service, body(stream=True)))[-1]
    assert last["type"] == "response.incomplete"


def test_an_engine_that_stops_fails_the_response(service: ScriptedService) -> None:
    service.finish = None
    last = events(post(service, body(stream=True)))[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "the engine has stopped"}
    whole = post(service, body())
    assert (whole.status_code, whole.json()["error"]["type"]) == (503, "server_error")


def test_an_answer_goes_back_in_as_it_came(service: ScriptedService) -> None:
    service.pieces = SAID
    items = post(service, body(reasoning={"effort": "high"}, tools=TOOLS)).json()["output"]
    output = {"type": "function_call_output", "call_id": items[2]["call_id"], "output": "22"}
    service.asked.clear()
    again = post(service, body(input=[{"role": "user", "content": "hi"}, *items, output], tools=[TOOL],
                               reasoning={"effort": "high"}))  # fmt: skip
    assert again.status_code == 200, again.text
    prompt = service.tokenizer.decode(service.asked[0][0])
    assert "<think>Let me see</think>Hi there\n\n" in prompt
    assert '<｜DSML｜parameter name="city" string="true">Beijing</｜DSML｜parameter>' in prompt
    assert prompt.endswith("<｜User｜><tool_result>22</tool_result><｜Assistant｜><think>")


SCHEMA = {"name": "n", "schema": {"type": "integer"}, "strict": True}
WANTED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"tool_choice": "required"}, {"tool_choice": "required"}),
    ({"tool_choice": {"type": "function", "name": "f"}},
     {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
    ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
    ({"tools": [], "text": {"format": {"type": "json_object"}}},
     {"tools": [], "response_format": {"type": "json_object"}}),
    ({"tools": [], "text": {"format": {"type": "json_schema", **SCHEMA}}},
     {"tools": [], "response_format": {"type": "json_schema", "json_schema": SCHEMA}}),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "chats"), WANTED)
def test_what_is_wanted_is_wanted_of_the_chat(
    service: ScriptedService, ours: dict[str, Any], chats: dict[str, Any]
) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    same = prompts(service, body(tools=[{"type": "function", **tool["function"]}]) | ours, chat(tools=[tool]) | chats)
    assert same[0] == same[1]
    assert [sampling.constraint is not None for _, sampling in service.asked] == [True, True]


def test_a_checked_request_goes_between_processes() -> None:
    # as large bodies do, which are checked by processes of their own
    request = ResponsesRequest.model_validate(body(text={"format": {"type": "json_schema", **SCHEMA}}, tools=[TOOL]))
    assert pickle.loads(pickle.dumps(request)).chat() == request.chat()


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"input": 5}, "input", "a string or a list of items"),
    ({"input": []}, "input", "at least 1 item"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "no other is read here"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type",
     "input_image"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "Input should be"),
    ({"input": [{**CALL, "arguments": {}}]}, "input[0].arguments", "string"),
    ({"input": [{**OUTPUT, "output": None}]}, "input[0].output", "a string or a list"),
    ({"input": [{**THOUGHT, "encrypted_content": "gAAA"}]}, "input[0].encrypted_content", "not supported"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name", "required"),
    ({"tool_choice": {"type": "file_search"}}, "tool_choice.type", "file_search"),
    ({"tool_choice": "required"}, "tool_choice", "not among the tools"),
    ({"tools": [{**TOOL, "parameters": {"type": "nothing"}, "strict": True}]}, "tools[0].parameters", "must be object"),
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "nothing"}}}}, "text.format",
     "nothing"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "required"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "not supported"),
    ({"store": True}, "store", "not supported"),
    ({"conversation": "c"}, "conversation", "not supported"),
    ({"background": True}, "background", "not supported"),
    ({"include": ["message.output_text.logprobs"]}, "include", "not supported"),
    ({"reasoning": {"effort": "utmost"}}, "reasoning.effort", "Input should be"),
    ({"max_output_tokens": 0}, "max_output_tokens", "greater than"),
    ({"temperature": -1}, "temperature", "greater than"),
    ({"messages": []}, "messages", "Unknown parameter"),
    ({"input": "x" * 9000}, "input", "context"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "param", "words"), REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_name_the_place(
    service: ScriptedService, changes: dict[str, Any], param: str, words: str, stream: bool
) -> None:
    answer = post(service, body(**changes, stream=stream))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert words in error["message"]


def test_another_model_is_404(service: ScriptedService) -> None:
    answer = post(service, body(model="other"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
