"""One request does not stall others: large bodies and long texts are worked on elsewhere, and slow readers given up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from engine_checkpoint import random_tokens
from scripted_service import CONTEXT, NAME, ScriptedService, chat, scripted_app
from small_tokenizer import write_tokenizer

from flagrelease import engine
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.serve import asked as asked_module
from flagrelease.engine.serve import service as service_module
from flagrelease.engine.serve.bind import bind, close, listen_on
from flagrelease.engine.serve.large import LargeBodies, along
from flagrelease.engine.serve.requests import prompts as prompts_module
from flagrelease.engine.serve.requests.refusals import MOST_VALUES, parameter_path
from flagrelease.engine.serve.service import Service, Stream
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import ResourceError

FILLER = " " * 10_000  # makes a body large without changing what it says


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path)
    return Tokenizer(tmp_path)


@pytest.fixture(scope="module")
def reader() -> Iterator[LargeBodies]:
    reader = LargeBodies()
    yield reader
    reader.stop()


def post(app: Any, requests: list[tuple[str, str]]) -> list[tuple[int, Any]]:
    async def work() -> list[tuple[int, Any]]:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
            headers = {"content-type": "application/json"}
            answers = [await client.post(path, content=raw.encode(), headers=headers) for path, raw in requests]
            return [(answer.status_code, comparable(answer.json())) for answer in answers]

    return asyncio.run(work())


def comparable(document: Any) -> Any:
    """Without what differs from answer to answer."""
    differs = ("id", "created", "created_at", "completed_at")
    if isinstance(document, dict):
        return {key: comparable(value) for key, value in document.items() if key not in differs}
    return [comparable(each) for each in document] if isinstance(document, list) else document


BODIES: list[tuple[str, Any]] = [
    ("/v1/chat/completions", chat()),
    ("/v1/chat/completions", chat(messages=[{"role": "user", "content": [{"type": "text", "text": 5}]}])),
    ("/v1/chat/completions", chat(messages=[{"role": "assistant", "tool_calls": {}}])),
    ("/v1/chat/completions", chat(colour=1)),
    ("/v1/chat/completions", chat(model="other")),
    ("/v1/completions", {"model": NAME, "prompt": [[1, 2], ["x"]]}),
    ("/v1/completions", {"model": NAME, "prompt": "one", "max_tokens": 2}),
    ("/v1/completions", {"model": NAME, "prompt": [1] * (CONTEXT + 1)}),
    ("/v1/messages", {"model": NAME, "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}]}),
    ("/v1/messages", {"model": NAME, "max_tokens": 3, "messages": [{"role": "user", "content": 1}]}),
    ("/v1/responses", {"model": NAME, "input": "hi", "max_output_tokens": 3}),
    ("/v1/messages/count_tokens", {"model": NAME, "messages": [{"role": "user", "content": "hi"}]}),
    ("/tokenize", {"prompt": "some text", "return_token_strs": True}),
    ("/detokenize", {"tokens": [70, 71]}),
    ("/v1/completions", ["no object"]),
]


def test_a_large_body_is_answered_as_a_small_one(tokenizer: Tokenizer, reader: LargeBodies) -> None:
    service = ScriptedService(tokenizer)
    small = post(scripted_app(tokenizer, service), [(path, json.dumps(body)) for path, body in BODIES])
    app = scripted_app(tokenizer, service)
    app.state.reader = reader
    large = post(app, [(path, json.dumps(body) + FILLER) for path, body in BODIES])
    for (path, body), one, other in zip(BODIES, small, large, strict=True):
        assert one == other, (path, body)
    statuses = {status for status, _ in large}
    assert {200, 400, 404} <= statuses


def test_a_large_body_that_is_no_json_is_refused_with_its_place(tokenizer: Tokenizer, reader: LargeBodies) -> None:
    app = scripted_app(tokenizer)
    app.state.reader = reader
    twice = '{"model": "x", "model": "y"}'
    deep = '{"metadata": ' + "[" * 200 + "]" * 200 + "}"
    (repeated, _), (nested, said), (many, words) = post(
        app,
        [
            ("/v1/completions", twice + FILLER),
            ("/v1/completions", deep + FILLER),
            ("/v1/completions", json.dumps({"metadata": {"a": [{}] * MOST_VALUES}})),
        ],
    )
    assert (repeated, nested, many) == (400, 400, 413)
    assert "nested" in said["error"]["message"]
    assert f"more than {MOST_VALUES:,} values" in words["error"]["message"]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"messages": [{}, {"content": [{"text": 5}]}]}, ("messages", 1, "user", "content", "parts", 0, "text")),
        ({"prompt": [[1], ["x"]]}, ("prompt", "several", 1, 0)),
        ({"a": 1}, ("b",)),
        ({"a": [1]}, ("a", 7)),
        ([1], ("model",)),
        ({"tool_calls": {}}, ("tool_calls", 0)),
    ],
)
def test_a_place_is_told_from_what_lies_along_it(body: Any, place: tuple[str | int, ...]) -> None:
    assert parameter_path(place, along(body, place)) == parameter_path(place, body)


@pytest.mark.slow
def test_a_process_that_dies_is_replaced(tokenizer: Tokenizer) -> None:
    reader = LargeBodies()
    app = scripted_app(tokenizer)
    app.state.reader = reader
    body = ("/v1/completions", json.dumps({"model": NAME, "prompt": "x", "max_tokens": 2}) + FILLER)
    try:
        assert post(app, [body])[0][0] == 200
        for process in reader._processes:
            os.kill(process._process.pid or 0, signal.SIGKILL)
        statuses = [status for status, _ in post(app, [body] * 4)]
        assert statuses[-1] == 200
        assert set(statuses) <= {200, 503}
    finally:
        reader.stop()


def test_what_cannot_fit_is_not_tokenised(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    # 5 MB took 28 s in the event loop, to be refused then
    asked: list[int] = []
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: asked.append(1) or encode(self, text))
    long = "x" * (CONTEXT * tokenizer.longest + 1)
    user = [{"role": "user", "content": long}]
    answers = post(
        scripted_app(tokenizer),
        [
            ("/v1/completions", json.dumps({"model": NAME, "prompt": long})),
            ("/v1/completions", json.dumps({"model": NAME, "prompt": ["a", long]})),
            ("/v1/chat/completions", json.dumps(chat(messages=user))),
            ("/v1/messages", json.dumps({"model": NAME, "max_tokens": 3, "messages": user})),
            ("/tokenize", json.dumps({"prompt": long})),
        ],
    )
    assert asked == []
    assert [status for status, _ in answers] == [400] * 5
    for _, document in answers:
        assert "a token has at most" in document["error"]["message"]


ARGUMENTS = json.dumps({str(n): n for n in range(600)})
LONG: dict[str, tuple[str, dict[str, Any]]] = {
    "many messages": ("/v1/chat/completions", chat(messages=chat()["messages"] * 500)),
    "many messages that are counted": ("/tokenize", {"messages": chat()["messages"] * 500}),
    "a chat's call": (
        "/v1/chat/completions",
        chat(messages=[*chat()["messages"], {"role": "assistant", "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": ARGUMENTS}}]}, *chat()["messages"]]),
    ),
    "a call of Responses": (
        "/v1/responses",
        {"model": NAME, "input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": ARGUMENTS},
                                  {"type": "function_call_output", "call_id": "c", "output": "ok"}]},
    ),
    "a call of Messages": (
        "/v1/messages/count_tokens",
        {"model": NAME, "messages": [*chat()["messages"], {"role": "assistant", "content": [
            {"type": "tool_use", "id": "c", "name": "f", "input": json.loads(ARGUMENTS)}]}, *chat()["messages"]]},
    ),
    "a tool": (
        "/v1/chat/completions",
        chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {str(n): {} for n in range(2000)}}}]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_a_long_conversation_is_encoded_beside_the_event_loop(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # One message with a call of 16 MB arguments took a minute in the event loop, as did any long chat at /tokenize.
    where: list[threading.Thread] = []
    encode = prompts_module.encode_messages
    monkeypatch.setattr(
        prompts_module, "encode_messages", lambda *what: where.append(threading.current_thread()) or encode(*what)
    )
    path, body = LONG[name]
    ((status, answer),) = post(scripted_app(tokenizer), [(path, json.dumps(body))])
    assert status == 200 or "context" in answer["error"]["message"], answer
    assert where
    assert threading.current_thread() not in where


def test_a_short_conversation_does_not_wait_for_long_ones(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a text of Responses with more than 100 characters did
    monkeypatch.setattr(asked_module, "aside", lambda work: pytest.fail("it was to wait"))
    bodies: list[tuple[str, Any]] = [
        ("/v1/chat/completions", chat(messages=chat()["messages"] * 30)),
        ("/v1/responses", {"model": NAME, "input": "word " * 100}),
        ("/v1/messages", {"model": NAME, "max_tokens": 3, "messages": chat()["messages"] * 30}),
    ]
    answers = post(scripted_app(tokenizer), [(path, json.dumps(body)) for path, body in bodies])
    assert [status for status, _ in answers] == [200] * 3


def test_tokenising_lets_other_threads_run(tokenizer: Tokenizer) -> None:
    # Tokenizer.encode of tokenizers 0.23 holds the interpreter's lock: no other thread ran for 8 s
    beats, done = [0], threading.Event()

    def beat() -> None:
        while not done.is_set():
            beats[0] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        before = beats[0]
        tokenizer.encode("Hello world, this is a text of words. " * 20_000)
        assert beats[0] - before > 5
    finally:
        done.set()
        thread.join()


def test_a_stream_that_is_not_read_is_given_up_and_its_row_is_free(
    quick_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "_MOST_BEHIND", 20)
    write_tokenizer(tmp_path)
    runner = Runner(engine.load(quick_release, "bf16", torch.float32), rows=1, context=2000)
    service = Service(Scheduler(runner, Tokenizer(tmp_path)), queue_limit=2)
    service.start()
    sampling = Sampling(temperature=1, seed=0, max_tokens=1500, ignore_eos=True)

    async def work() -> int:
        (stream,) = service.open([(random_tokens(4, vocabulary=263), sampling)])
        await until(lambda: stream._request.cancelled and not service._scheduler.busy)
        assert stream._request.events.qsize() == 21, "no event is kept after it was given up"
        read = [0]
        with pytest.raises(ResourceError, match="not read"):
            await read_all(stream, read)
        stream.close()
        return read[0]

    try:
        assert asyncio.run(work()) == 20
    finally:
        service.stop()


async def read_all(stream: Stream, count: list[int]) -> None:
    async for _ in stream:
        count[0] += 1


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(6000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux's kernel gives such connections up")
def test_the_kernel_gives_up_a_connection_whose_reader_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flagrelease.engine.serve.bind._READING", 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    listening = bind("127.0.0.1", port)
    listen_on(listening, "127.0.0.1", port)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        served, _ = listening[0].accept()
        with served, pytest.raises(OSError, match="timed out|reset|Broken pipe"):  # noqa: PT012, RUF043
            while True:
                served.sendall(b"x" * 65536)
    close(listening)
