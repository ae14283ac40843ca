"""Behaviour over an endpoint: what is sent, how answers in the forms of several servers are judged, what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from endpoint_standin import Answer, Standin, completion

from flagrelease import engine
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.efforts import read_efforts
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import NetworkError
from flagrelease.model.v4.chat import encode_messages, with_format_in_text
from flagrelease.model.v4.efforts import efforts_of
from flagrelease.records.rules import BehaviourRules
from flagrelease.retry import Patience
from flagrelease.validate.behaviour.answers import Behaviour, Reply, digest_of
from flagrelease.validate.behaviour.ask import EngineAsker
from flagrelease.validate.behaviour.journal import collect
from flagrelease.validate.behaviour.prompts import bundled_prompts
from flagrelease.validate.behaviour.served import EndpointAsker
from flagrelease.validate.behaviour.stage import behaviour_stage
from flagrelease.validate.endpoint.address import Endpoint

EFFORTS = efforts_of("0731")
CALL = {"name": "get_weather", "arguments": '{"city": "Lisbon", "day": "tomorrow"}'}
DSML_CALL = (
    '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n'
    '<｜DSML｜parameter name="city" string="true">Lisbon</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="day" string="true">tomorrow</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)


def rules(**changes: Any) -> BehaviourRules:
    return BehaviourRules(**{"prompts": 1, "repeats": 1, "max_tokens": 64, "mode": "chat"} | changes)


def nothing(done: int, total: int) -> None:
    """Nobody watches."""


def calls(*functions: dict[str, str], finish: str = "tool_calls") -> Answer:
    return completion(None, finish, tool_calls=[{"id": "1", "type": "function", "function": one} for one in functions])


def asked(standin: Standin, folder: Path, **changes: Any) -> Behaviour:
    asked_by = rules(**changes)
    endpoint = Endpoint(standin.url, "m", timeout=10.0)
    asker = EndpointAsker(endpoint, EFFORTS.of(asked_by.mode), asked_by, Patience(attempts=1))
    return collect(asker, "source x", "m there", asked_by, folder / "answers.jsonl", nothing)


def one(answer: Answer, wish: str, folder: Path, **changes: Any) -> Reply:
    """How `answer` is judged, to the prompt of that kind."""
    with Standin(lambda request: answer) as standin:
        answers = asked(standin, folder, **changes).answers
    return next(reply for reply in answers if reply.wish == wish)


def test_json_is_asked_for_in_the_text_that_the_encoding_writes() -> None:
    effort = EFFORTS.of("chat")
    for prompt in bundled_prompts():
        plain = with_format_in_text(prompt.messages)
        assert all(message.keys() == {"role", "content"} for message in plain)
        assert encode_messages(plain, effort, prompt.tools).text == prompt.encode(effort).text


def test_what_is_sent_and_kept(tmp_path: Path) -> None:
    tokens = list(range(21))
    with Standin(at={"/tokenize": Answer(document={"count": 21, "tokens": tokens})}) as standin:
        found = asked(standin, tmp_path, repeats=2, temperature=0.7)
        again = asked(standin, tmp_path, repeats=2, temperature=0.7)
    chats = [request for request in standin.requests if "max_tokens" in request]
    assert len(chats) == len(found.answers) == 6
    assert len({request["seed"] for request in chats}) == 6
    assert {(request["temperature"], request["max_tokens"]) for request in chats} == {(0.7, 64)}
    assert [request["thinking"] for request in chats] == [{"type": "disabled"}] * 6
    tools = [[tool["function"]["name"] for tool in request.get("tools", ())] for request in chats]
    assert sorted(tools) == [[], [], [], [], ["get_weather"], ["get_weather"]]
    assert not any("response_format" in json.dumps(request) for request in standin.requests)
    assert {reply.prompt_sha256 for reply in found.answers} == {digest_of(tokens)}
    assert all(reply.by_server and reply.prompt_tokens == 21 for reply in found.answers)
    assert again == found, "everything was in the journal"


@pytest.mark.parametrize(
    ("answer", "wish", "granted", "broken"),
    [
        (completion("Heat moves."), "text", True, False),
        (completion(" \n"), "text", False, False),
        (completion("Heat moves.", reasoning="hm"), "text", True, False),
        (completion("Heat <｜User｜> moves."), "text", False, True),
        (completion("Heat \ufffd moves.", reasoning="hm"), "text", False, True),
        (calls(CALL), "tool", True, False),
        (calls(CALL, finish="stop"), "tool", True, False),  # servers that call it a stop
        (calls(CALL, CALL), "tool", True, False),
        (calls({"name": "get_weather", "arguments": '{"city": "Lisbon"}'}), "tool", False, False),
        (calls({"name": "no_such_tool", "arguments": "{}"}), "tool", False, False),
        (calls({"name": "get_weather", "arguments": '{"city": "Lis'}), "tool", False, True),
        (completion(DSML_CALL), "tool", True, False),  # a server without a parser of calls
        (completion(DSML_CALL.replace("｜DSML｜", "")), "tool", False, False),  # .. that drops special tokens
        (completion('{"name": "Ada"}'), "json", True, False),
        (completion('```json\n{"name": "Ada"}\n```'), "json", True, False),
        (completion('{"name": "Ada"'), "json", False, False),
    ],
)
def test_how_an_answer_is_judged(answer: Answer, wish: str, granted: bool, broken: bool, tmp_path: Path) -> None:
    reply = one(answer, wish, tmp_path)
    assert (reply.granted, reply.broken, reply.finish, reply.loops) == (granted, broken, "stop", False)
    assert (reply.prompt_sha256, reply.prompt_tokens, reply.tokens) == (None, 21, 7)


def test_an_answer_that_is_cut_off_or_loops(tmp_path: Path) -> None:
    reply = one(completion("Heat </think> moves. " * 30, "length"), "text", tmp_path)
    assert (reply.granted, reply.broken, reply.finish, reply.loops) == (False, False, "length", True)


def test_a_thought_that_no_parser_took_off_is_read_here(tmp_path: Path) -> None:
    assert one(completion("hm</think>Heat moves."), "text", tmp_path, mode="thinking").granted
    assert one(completion("hm</think>Heat moves."), "text", tmp_path / "x", mode="chat").broken


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(400, {"error": {"param": "tools"}}), "HTTP 400"),
        (completion("", "content_filter"), "an answer ended with finish_reason 'content_filter'"),
        (Answer(401, {}), "HTTP 401 for model 'm'"),
    ],
)
def test_what_ends_the_run(answer: Answer, said: str, tmp_path: Path) -> None:
    with Standin(lambda request: answer) as standin, pytest.raises(NetworkError, match=said):
        asked(standin, tmp_path)


def test_a_server_that_tokenizes_otherwise_than_it_answers(tmp_path: Path) -> None:
    with Standin(at={"/tokenize": Answer(document={"count": 2, "tokens": [1, 2]})}) as standin:
        found = asked(standin, tmp_path)
    assert {(reply.prompt_sha256, reply.prompt_tokens) for reply in found.answers} == {(None, 21)}


def test_what_is_said_of_what_a_server_cannot_show(tmp_path: Path) -> None:
    with Standin() as standin:
        port = asked(standin, tmp_path, repeats=1)
    native = port.model_copy(
        update={
            "answers": tuple(a.model_copy(update={"by_server": False, "prompt_sha256": "a" * 64}) for a in port.answers)
        }
    )
    stage = behaviour_stage(tmp_path, port, native)
    said = " ".join(stage.leaves_open)
    assert "All 3 prompts were compared by how many tokens they have: the server does not tell which." in said
    assert "What the server's own parsers mended or dropped (this release)" in said
    assert "nothing in its answers shows its weights" in said
    assert stage.figures["token_mismatches"] == []
    longer = native.model_copy(
        update={"answers": tuple(a.model_copy(update={"prompt_tokens": 22}) for a in native.answers)}
    )
    assert behaviour_stage(tmp_path, port, longer).verdict == "fail"
    assert len(behaviour_stage(tmp_path, port, longer).figures["token_mismatches"]) == 3  # type: ignore[arg-type]


def test_served_it_answers_as_the_engine_does(small_release: Path, served_small: str, tmp_path: Path) -> None:
    """Our own server: the same tokens of all prompts, tools included, and the same answers, token for token."""
    asked_by = rules(max_tokens=12)
    scheduler = Scheduler(
        Runner(engine.load(small_release, "bf16", torch.float32), rows=4, context=2048), Tokenizer(small_release)
    )
    effort = read_efforts(small_release).of("chat")
    direct = collect(EngineAsker(scheduler, effort, asked_by), "s", "here", asked_by, tmp_path / "direct", nothing)
    asker = EndpointAsker(Endpoint(served_small, "small", concurrency=3), effort, asked_by)
    served = collect(asker, "s", "there", asked_by, tmp_path / "served", nothing)
    assert served.answers == tuple(a.model_copy(update={"by_server": True}) for a in direct.answers)
