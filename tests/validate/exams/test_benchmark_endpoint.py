"""An endpoint as an answerer, over loopback: what is sent, what is waited out, what ends the run with nothing lost."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint_standin import Answer, Behaviour, Standin, completion
from scripted_exam import MARKER, choice_exam, choice_rules, nothing

from flagrelease.errors import NetworkError, ResourceError, VerificationError
from flagrelease.model.v4.efforts import efforts_of
from flagrelease.retry import Patience
from flagrelease.validate.endpoint import queue
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.endpoint.answerer import EndpointAnswerer
from flagrelease.validate.endpoint.client import EndpointClient
from flagrelease.validate.exams.answerer import Ask, Reply
from flagrelease.validate.exams.run import run_side
from flagrelease.validate.stages.asking import answering

EFFORTS = efforts_of("0731")
ASK = Ask("item-0", 0, f"Which {MARKER}?", 17)
ONCE = Patience(attempts=1)
QUESTION = f"the question was: Which {MARKER}?"


def ask(standin: Standin, asks: list[Ask] | None = None, mode: str = "chat", **how: Any) -> list[tuple[Ask, Reply]]:
    rules = choice_rules(mode=mode, temperature=0.9, top_p=0.8)
    return list(answerer(standin, **how).answer([ASK] if asks is None else asks, rules))


def answerer(standin: Standin, **how: Any) -> EndpointAnswerer:
    asked = {name: how.pop(name) for name in ("silence", "patience") if name in how}
    return EndpointAnswerer(Endpoint(standin.url, "m", **{"timeout": 10.0} | how), "stack", EFFORTS, **asked)


def first(*answers: Answer) -> Behaviour:
    """These, then right ones."""
    left = iter(answers)
    return lambda request: next(left, None)


def test_what_is_sent_and_read() -> None:
    with Standin() as standin:
        ((asked, reply),) = ask(standin)
    (request,) = standin.requests
    assert request == {
        "model": "m",
        "messages": [{"role": "user", "content": ASK.prompt}],
        "temperature": 0.9,
        "top_p": 0.8,
        "seed": 17,
        "max_tokens": 40,
        "thinking": {"type": "disabled"},
    }
    assert asked == ASK
    assert (reply.text, reply.reasoned, reply.prompt_tokens, reply.tokens) == ("\\boxed{A}", False, 21, 7)
    assert reply.finish == "stop"


@pytest.mark.parametrize(
    ("mode", "dialect", "said"),
    [
        ("chat", "deepseek", {"thinking": {"type": "disabled"}}),
        ("thinking", "deepseek", {"thinking": {"type": "enabled"}, "reasoning_effort": "high"}),
        ("max", "deepseek", {"thinking": {"type": "enabled"}, "reasoning_effort": "max"}),
        ("chat", "template", {"chat_template_kwargs": {"thinking": False}}),
        ("low", "template", {"chat_template_kwargs": {"thinking": True, "reasoning_effort": "low"}}),
        ("max", "template", {"chat_template_kwargs": {"thinking": True, "reasoning_effort": "max"}}),
    ],
)
def test_how_the_mode_is_asked_for(mode: str, dialect: str, said: dict[str, Any]) -> None:
    with Standin() as standin:
        ask(standin, mode=mode, dialect=dialect)
    assert {key: standin.requests[0].get(key) for key in said} == said
    assert {"thinking", "chat_template_kwargs", "reasoning_effort"} & standin.requests[0].keys() == said.keys()


@pytest.mark.parametrize(
    ("answer", "text", "reasoned"),
    [
        (completion("\\boxed{B}", reasoning_content="hm"), "\\boxed{B}", True),
        (completion("\\boxed{B}", reasoning="hm"), "\\boxed{B}", True),  # vLLM's newer name
        (completion("\\boxed{C}?</think>\\boxed{B}"), "\\boxed{B}", True),  # a server without a reasoning parser
        (completion("<think>\\boxed{C}?</think>\\boxed{B}"), "\\boxed{B}", True),
        (completion(None, "length", reasoning_content="\\boxed{C}? Let"), "", True),
        (completion("\\boxed{C}? Let", "length"), "", True),  # cut off in its reasoning, which nobody marked
        (completion("\\boxed{B}"), "\\boxed{B}", False),
    ],
)
def test_reasoning_in_the_forms_of_several_servers(answer: Answer, text: str, reasoned: bool) -> None:
    with Standin(first(answer)) as standin:
        ((_, reply),) = ask(standin, mode="thinking")
    assert (reply.text, reply.reasoned) == (text, reasoned)


@pytest.mark.parametrize(
    "obstacle",
    [
        Answer(429, {"error": {"message": QUESTION}}, {"retry-after": "0"}),
        Answer(503, {"error": {"message": QUESTION}}, {"retry-after": "0"}),
        Answer(500, content=b"<html>", headers={"retry-after": "0"}),
        Answer(408, {}, {"retry-after": "0"}),
    ],
)
def test_what_passes_by_itself_is_waited_out(obstacle: Answer) -> None:
    with Standin(first(obstacle, obstacle, obstacle)) as standin:
        ((_, reply),) = ask(standin)
    assert len(standin.requests) == 4
    assert {request["seed"] for request in standin.requests} == {17}
    assert reply.text == "\\boxed{A}"


def test_a_cut_connection_is_tried_again() -> None:
    with Standin(first(Answer(cut=True))) as standin:
        ask(standin)
    assert len(standin.requests) == 2


@pytest.mark.parametrize(
    ("answer", "how", "said"),
    [
        (
            Answer(429, {}, {"retry-after": "0"}),
            {"patience": Patience(attempts=3)},
            "HTTP 429; tried 3 times. Run the same command again to resume",
        ),
        (Answer(429, {}, {"retry-after": "4000"}), {}, "HTTP 429; asked to wait 4000 s"),
        (Answer(500, {}), {"patience": ONCE}, "HTTP 500; tried 1 times"),
        (Answer(wait=threading.Event()), {"patience": ONCE, "timeout": 0.2}, "no answer within 0.2 s; tried 1 times"),
        (Answer(cut=True), {"patience": ONCE}, "no connection"),
        (Answer(401, {"error": {"message": QUESTION}}), {}, "HTTP 401 for model 'm'"),
        (Answer(404, {"error": {"message": QUESTION}}), {}, "HTTP 404 for model 'm'"),
        (Answer(400, {"error": {"message": QUESTION}}), {}, "HTTP 400 for model 'm'"),
        (Answer(content=b"<html>" + QUESTION.encode()), {}, "not JSON|not a chat completion"),
        (Answer(content=b"{"), {}, "not JSON"),
        (completion("A", tokens=-1), {}, "not a chat completion with one choice and its usage"),
        (Answer(document={"choices": []}), {}, "not a chat completion with one choice and its usage"),
        (Answer(document=[QUESTION]), {}, "not a chat completion"),
        (Answer(document="ok"), {}, "not a chat completion"),
        (Answer(document=None), {}, "not a chat completion"),
        (Answer(document={"choices": [{"message": {"content": QUESTION}}]}), {}, "not a chat completion"),
        (Answer(document={"choices": [{"message": QUESTION, "finish_reason": "stop"}]}), {}, "not a chat completion"),
        (completion(5), {}, "not a chat completion"),  # type: ignore[arg-type]
        (completion(None, "tool_calls"), {}, "finish_reason 'tool_calls'"),
        (completion("", "content_filter"), {}, "finish_reason 'content_filter'"),
    ],
)
def test_what_does_not_pass_ends_the_run_with_a_clear_error(answer: Answer, how: dict[str, Any], said: str) -> None:
    with Standin(lambda request: answer) as standin, pytest.raises(NetworkError, match=said) as caught:
        ask(standin, **how)
    if answer.wait is not None:
        answer.wait.set()
    assert MARKER not in str(caught.value)
    assert standin.url in str(caught.value)


def test_nobody_listens() -> None:
    with Standin() as standin:
        pass
    with pytest.raises(NetworkError, match="no connection"):
        ask(standin, patience=ONCE)


def test_as_many_at_once_as_allowed_and_no_more() -> None:
    release = threading.Event()
    four = itertools.count(1)

    def behave(request: dict[str, Any]) -> Answer | None:
        if next(four) == 4:
            release.set()  # the first three wait for the fourth
        return Answer(document=completion("\\boxed{A}").document, wait=release)

    asks = [Ask(f"item-{i}", 0, f"{MARKER} {i}", i) for i in range(20)]
    with Standin(behave) as standin:
        replies = ask(standin, asks, concurrency=4)
    assert {asked for asked, _ in replies} == set(asks)
    assert standin.most_at_once == 4


def test_an_error_stops_the_others_at_once() -> None:
    never = threading.Event()
    asks = [Ask(f"item-{i}", 0, MARKER, i) for i in range(8)]
    with Standin(lambda request: Answer(401) if request["seed"] == 3 else Answer(wait=never)) as standin:
        with pytest.raises(NetworkError, match="HTTP 401"):
            ask(standin, asks, concurrency=4, timeout=600.0)
        sent = {request["seed"] for request in standin.requests}
        assert 3 in sent
        assert sent <= {0, 1, 2, 3}  # the refused one may be answered before its neighbours are on their way
        never.set()


def test_silence_is_broken_by_what_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    slow = threading.Event()
    say = queue._say_waiting

    def say_and_let_go(client: EndpointClient, running: dict[Any, Any]) -> None:
        say(client, running)
        if any(client.trouble_of(task) for task in running):
            slow.set()

    monkeypatch.setattr(queue, "_say_waiting", say_and_let_go)
    held = Answer(wait=slow, document=completion("\\boxed{A}").document)
    with Standin(first(Answer(429, headers={"retry-after": "0"}), held)) as standin:
        assert len(ask(standin, silence=0.1)) == 1
    line = rf"{standin.url}: 1 answers are waited for, the oldest for \d+ s; HTTP 429"
    assert re.fullmatch(line, capfd.readouterr().err.splitlines()[-1])


def test_who_answers_in_time_is_not_talked_about(capfd: pytest.CaptureFixture[str]) -> None:
    with Standin() as standin:
        assert len(ask(standin, [Ask(f"item-{i}", 0, MARKER, i) for i in range(3)])) == 3
    assert capfd.readouterr().err == ""


def test_what_is_said_of_an_endpoint_is_how_it_is_asked(tmp_path: Path) -> None:
    there = Endpoint("http://127.0.0.1:1/v1", "m", "template", 3, 7.5)
    with answering(choice_exam(tmp_path), there, "no device", EFFORTS) as asked:
        assert isinstance(asked, EndpointAnswerer)
        assert asked.endpoint is there


def test_nothing_is_lost_when_an_endpoint_fails(tmp_path: Path) -> None:
    exam = choice_exam(tmp_path)
    counter: Iterator[int] = itertools.count(1)
    with Standin(lambda request: Answer(500) if next(counter) > 30 else None) as standin:
        failing = answerer(standin, concurrency=2, patience=ONCE)
        with pytest.raises(NetworkError, match="Run the same command again to resume"):
            run_side(exam, failing, "m", tmp_path / "j", 4, nothing)
        standin.behave, before = (lambda request: None), len(standin.requests)
        side = run_side(exam, failing, "m", tmp_path / "j", 4, nothing)
    assert len(standin.requests) - before in (18, 19)  # one right answer may have crossed with the error
    assert side.repeats == 4
    assert side.items[0].prompt_tokens == 21


def test_an_endpoint_with_a_constant_seed_is_noticed(tmp_path: Path) -> None:
    """Trap: the server ignores the seed of the request, or there is a cache in front of it."""
    exam = choice_exam(tmp_path)
    behave: Behaviour = lambda request: completion(f"{request['messages']} \\boxed{{A}}", tokens=900)  # noqa: E731
    with Standin(behave) as standin, pytest.raises(VerificationError, match="constant seed, or answers from a cache"):
        run_side(exam, answerer(standin, concurrency=2), "m", tmp_path / "j", 4, nothing)
    assert len(standin.requests) < 40


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "httpx2", None)
    with Standin() as standin, pytest.raises(ResourceError, match=r"pip install '\.\[eval\]'"):
        ask(standin)
