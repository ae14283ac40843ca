"""What the server answers beside plain requests: its models, health, tokens, several choices, usage while streaming."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest
from scripted_service import CONTEXT, NAME, VOCABULARY, ScriptedService, caller, chat, scripted_app
from small_tokenizer import write_tokenizer

import flagrelease
from flagrelease.engine.text import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture
def service(tokenizer: Tokenizer) -> ScriptedService:
    return ScriptedService(tokenizer)


def send(service: ScriptedService, method: str, path: str, body: Any = None) -> httpx2.Response:
    async def call() -> httpx2.Response:
        async with caller(scripted_app(service.tokenizer, service)) as client:
            return await client.request(method, path, json=body) if body else await client.request(method, path)

    return asyncio.run(call())


def chunks(answer: httpx2.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_model_is_found_by_its_name(service: ScriptedService) -> None:
    card = send(service, "GET", f"/v1/models/{NAME}").json()
    assert (card["id"], card["object"], card["max_model_len"]) == (NAME, "model", CONTEXT)
    (listed,) = send(service, "GET", "/v1/models").json()["data"]
    times = {"created": 0, "created_at": ""}
    assert {**listed, **times} == {**card, **times}  # every call here has an application of its own
    other = send(service, "GET", "/v1/models/org/other")
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")


def test_health_tells_a_living_process_from_a_ready_one(service: ScriptedService) -> None:
    paths = ("/health", "/health/ready", "/health/live")
    assert [send(service, "GET", path).status_code for path in paths] == [200, 200, 200]
    service.alive = False
    assert [send(service, "GET", path).status_code for path in paths] == [503, 503, 200]


def test_version(service: ScriptedService) -> None:
    assert send(service, "GET", "/version").json() == {"version": flagrelease.__version__}


@pytest.mark.parametrize(
    "path", ["/v1/models", f"/v1/models/{NAME}", "/health", "/health/live", "/version", "/metrics"]
)
def test_head_is_answered_wherever_get_is(service: ScriptedService, path: str) -> None:
    assert send(service, "HEAD", path).status_code == 200


def test_tokens_of_a_text_and_back(service: ScriptedService) -> None:
    ids = service.tokenizer.encode("Grüße")
    answer = send(service, "POST", "/tokenize", {"model": NAME, "prompt": "Grüße", "return_token_strs": True}).json()
    assert (answer["tokens"], answer["count"], answer["max_model_len"]) == (ids, len(ids), CONTEXT)
    assert len(answer["token_strs"]) == len(ids)
    assert send(service, "POST", "/detokenize", {"tokens": ids}).json() == {"prompt": "Grüße"}


def test_tokens_of_a_chat_are_those_that_are_answered(service: ScriptedService) -> None:
    asked = {"messages": chat()["messages"], "thinking": {"type": "enabled"}}
    tokens = send(service, "POST", "/tokenize", asked).json()["tokens"]
    send(service, "POST", "/v1/chat/completions", chat(**asked))
    assert service.asked[0][0] == tokens


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ("/tokenize", {"model": "other", "prompt": "x"}, "model"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [VOCABULARY]}, "tokens"),  # had no text, and nobody was told
        ("/detokenize", {"tokens": [1] * (CONTEXT + 1)}, "tokens"),  # millions took seconds, in the event loop too
    ],
)
def test_what_cannot_be_tokenised_is_refused(service: ScriptedService, path: str, body: Any, param: str) -> None:
    answer = send(service, "POST", path, body)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_bias", {"999999": 1}),
        ("stop_token_ids", [999999]),
        ("allowed_token_ids", [999999]),
        ("min_tokens", 9),
        ("bad_words", ["fine", " "]),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_parameter_that_does_not_fit_the_model_is_to_blame(
    service: ScriptedService, path: str, name: str, value: Any
) -> None:
    # the prompt or the messages were said to be wrong
    asks = {"prompt": "x"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "x"}]}
    answer = send(service, "POST", path, {"model": NAME, **asks, "max_tokens": 4, name: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name


def test_choices_are_numbered_through_all_prompts_and_a_prompt_counts_once(service: ScriptedService) -> None:
    body = {"model": NAME, "prompt": ["ab", "cde"], "n": 3, "seed": 7}
    answer = send(service, "POST", "/v1/completions", body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3, 4, 5]
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}
    lengths, seeds = [len(p) for p, _ in service.asked], [sampling.seed for _, sampling in service.asked]
    assert lengths == [2, 2, 2, 3, 3, 3]
    assert seeds[0] == 7  # the first choice is what n = 1 gives
    assert len(set(seeds[:3])) == 3
    assert seeds[:3] == seeds[3:]


def test_choices_of_a_chat(service: ScriptedService) -> None:
    answer = send(service, "POST", "/v1/chat/completions", chat(n=2)).json()
    assert [(c["index"], c["message"]["content"]) for c in answer["choices"]] == [
        (0, "Hello world"),
        (1, "Hello world"),
    ]
    assert [sampling.seed for _, sampling in service.asked] == [None, None]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_of_several_choices_is_the_whole(service: ScriptedService, path: str) -> None:
    # a stream of several prompts was refused
    chats = "chat" in path
    body = chat(n=3) if chats else {"model": NAME, "prompt": ["a", "b", "c"]}
    got = chunks(send(service, "POST", path, {**body, "stream": True}))
    texts, ends = {0: "", 1: "", 2: ""}, []
    for chunk in got:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += (choice["delta"].get("content") or "") if chats else choice["text"]
        ends += [choice["index"]] if choice["finish_reason"] else []
    assert texts == dict.fromkeys(texts, "Hello world")
    assert sorted(ends) == [0, 1, 2]


def test_usage_comes_with_every_chunk_where_it_is_asked_for(service: ScriptedService) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": NAME, "prompt": "abc", "stream": True, "stream_options": options}
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks(send(service, "POST", "/v1/completions", body))]
    assert counts == [1, 2, 2]
    last = {**body, "stream_options": {"include_usage": True}}
    usages = [chunk["usage"] for chunk in chunks(send(service, "POST", "/v1/completions", last))]
    assert usages == [None, None, {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}]


@pytest.mark.parametrize(("change", "param"), [({"n": 0}, "n"), ({"n": 129}, "n"), ({"min_tokens": -1}, "min_tokens")])
def test_counts_out_of_range(service: ScriptedService, change: dict[str, Any], param: str) -> None:
    answer = send(service, "POST", "/v1/chat/completions", chat(**change))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_least_length_beyond_the_limit_is_refused(service: ScriptedService) -> None:
    answer = send(service, "POST", "/v1/chat/completions", chat(min_tokens=5, max_tokens=4))
    assert answer.status_code == 400
    assert "min_tokens 5" in answer.json()["error"]["message"]
