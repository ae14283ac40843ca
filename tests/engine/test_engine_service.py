"""A service under load: the queue and its limit, callers who leave, what a monitor sees, drafts in the usage."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx2
import pytest
import torch
from engine_checkpoint import random_tokens
from on_loopback import on_loopback
from small_tokenizer import write_tokenizer

from flagrelease import engine
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Request, Scheduler
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.serve.server import Served, make_app
from flagrelease.engine.serve.service import BusyError, Service, Stream
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import ResourceError, UsageError
from flagrelease.model.v4.efforts import efforts_of

ROWS, QUEUE, CONTEXT = 2, 3, 1500
LONG = Sampling(temperature=1, seed=0, max_tokens=1000, ignore_eos=True)
SHORT = Sampling(temperature=0, max_tokens=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def runner(quick_release: Path) -> Runner:
    model = engine.load(quick_release, "bf16", torch.float32, mtp=True)
    model.config = model.config.model_copy(update={"eos_token_id": -1})  # answers end by length only
    return Runner(model, ROWS, CONTEXT, speculate=True)


@contextlib.contextmanager
def running(runner: Runner, tokenizer: Tokenizer, clock: Callable[[], float] = time.monotonic) -> Iterator[Service]:
    service = Service(Scheduler(runner, tokenizer), QUEUE, clock)
    service.start()
    try:
        yield service
    finally:
        service.stop()


def asked(prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Request]:
    return [(prompt, sampling) for prompt in prompts]


async def first(stream: Stream) -> int:
    return (await anext(stream)).generated


def test_a_full_queue_refuses_at_once(runner: Runner, tokenizer: Tokenizer) -> None:
    async def work(service: Service) -> None:
        prompts = [random_tokens(5, seed=n, vocabulary=263) for n in range(ROWS + QUEUE)]
        streams = service.open(asked(prompts, LONG))
        assert [await first(stream) for stream in streams[:ROWS]] == [1] * ROWS
        assert (service.load.running, service.load.waiting) == (ROWS, QUEUE)
        with pytest.raises(BusyError, match="3 sequences wait; try again in 1 s"):
            service.open(asked([prompts[0]], SHORT))
        with pytest.raises(UsageError, match="the context is 1500"):  # a place would not help it
            service.open(asked([random_tokens(1499)], LONG))
        with pytest.raises(UsageError, match="6 sequences in one request: this server takes 5"):
            service.open(asked([prompts[0]] * 6, SHORT))
        assert service.load.refused == 1
        streams[0].close()
        streams[0].close()
        assert await first(streams[ROWS]) == 1  # the one that waited longest has the row
        (late,) = service.open(asked([prompts[0]], SHORT))
        for stream in streams:
            stream.close()
        assert [event.generated async for event in late][-1] == 2
        late.close()
        assert (service.load.running, service.load.waiting) == (0, 0)

    with running(runner, tokenizer) as service:
        asyncio.run(work(service))


def test_all_prompts_of_a_request_or_none(runner: Runner, tokenizer: Tokenizer) -> None:
    async def work(service: Service) -> None:
        held = service.open(asked([random_tokens(5)] * 3, LONG))
        with pytest.raises(BusyError):
            service.open(asked([random_tokens(5)] * 3, SHORT))
        with pytest.raises(UsageError, match="outside the vocabulary"):
            service.open(asked([random_tokens(5), [9999]], SHORT))
        assert service.load.running + service.load.waiting == 3
        for stream in held:
            stream.close()

    with running(runner, tokenizer) as service:
        asyncio.run(work(service))


def test_the_advice_is_the_time_between_ends(runner: Runner, tokenizer: Tokenizer) -> None:
    now = 0.0

    async def work(service: Service) -> list[int]:
        nonlocal now
        advice = []
        for pause in (40.0, 40.0, 0.0):
            streams = service.open(asked([random_tokens(5)] * (ROWS + QUEUE), LONG))
            with pytest.raises(BusyError) as caught:
                service.open(asked([random_tokens(5)], SHORT))
            advice.append(caught.value.retry_after)
            for stream in streams:
                stream.close()
            now += pause
        return advice

    with running(runner, tokenizer, lambda: now) as service:
        assert asyncio.run(work(service)) == [1, 8, 8]  # nothing known; 5 ends in 40 s; 10 in 80 s
        now += 3000
        # 15 ends in 3080 s: told the longest wait
        assert asyncio.run(work(service))[0] == 60


def test_a_stopped_service_tells_who_waits(runner: Runner, tokenizer: Tokenizer) -> None:
    async def work(service: Service) -> None:
        streams = service.open(asked([random_tokens(5)] * 4, LONG))
        await first(streams[0])
        await asyncio.to_thread(service.stop)
        for stream in streams:
            with pytest.raises(ResourceError, match="has stopped"):
                async for _ in stream:
                    pass
            stream.close()
        with pytest.raises(ResourceError, match="has stopped"):
            service.open(asked([random_tokens(5)], SHORT))

    service = Service(Scheduler(runner, tokenizer), QUEUE)
    service.start()
    asyncio.run(work(service))


@pytest.fixture(scope="module")
def server(runner: Runner, tokenizer: Tokenizer) -> Iterator[tuple[str, Service]]:
    with running(runner, tokenizer) as service:
        app = make_app(Served(service, tokenizer, "small", "chat", efforts_of("preview")))
        with on_loopback(app) as address:
            yield address, service


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_full_server_answers_429(server: tuple[str, Service]) -> None:
    address, service = server
    body = {"model": "small", "prompt": "x", "max_tokens": 1000, "stream": True, "ignore_eos": True}
    with httpx2.Client(base_url=address, timeout=60) as client, contextlib.ExitStack() as stack:
        for _ in range(ROWS):
            answer = stack.enter_context(client.stream("POST", "/v1/completions", json=body))
            assert answer.status_code == 200
        short = {"json": body | {"stream": False, "max_tokens": 1}}
        waiting = [threading.Thread(target=client.post, args=("/v1/completions",), kwargs=short) for _ in range(QUEUE)]
        for thread in waiting:
            thread.start()
        until(lambda: service.load.waiting == QUEUE)
        refused = client.post("/v1/completions", json=body)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        too_long = client.post("/v1/completions", json=body | {"max_tokens": 5000})
        assert too_long.status_code == 400
        assert "flagrelease_sequences_waiting 3\n" in client.get("/metrics").text
        stack.close()
        for thread in waiting:
            thread.join()
        until(lambda: service.load.running == 0)
        again = client.post("/v1/completions", json=body | {"stream": False, "max_tokens": 3})
        assert again.json()["usage"]["completion_tokens"] == 3


def test_a_caller_of_a_whole_answer_who_leaves_frees_the_row(server: tuple[str, Service]) -> None:
    address, service = server
    with post(address, {"model": "small", "prompt": ["x"] * 4, "max_tokens": 1400, "ignore_eos": True}):
        until(lambda: (service.load.running, service.load.waiting) == (ROWS, 2))
    until(lambda: service.load.running == 0 and not service._scheduler.busy)
    assert service.load.totals.generated < 4 * 1400


def test_a_caller_who_waits_for_a_stream_and_leaves_gives_up_the_place(server: tuple[str, Service]) -> None:
    address, service = server
    body = {"model": "small", "prompt": "x", "max_tokens": 1400, "stream": True, "ignore_eos": True}
    with httpx2.Client(base_url=address, timeout=60) as client, contextlib.ExitStack() as stack:
        for _ in range(ROWS):
            stack.enter_context(client.stream("POST", "/v1/completions", json=body))
        with post(address, body):
            until(lambda: service.load.waiting == 1)
        until(lambda: service.load.waiting == 0)
        assert service.load.running == ROWS  # nobody else has ended
    until(lambda: service.load.running == 0)


@contextlib.contextmanager
def post(address: str, body: dict[str, object]) -> Iterator[None]:
    """Send a request and wait for nothing; at the end the connection is closed."""
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(head.encode() + b"\r\n\r\n" + data)
        yield


def test_usage_and_metrics_count_drafts(server: tuple[str, Service]) -> None:
    address, service = server
    with httpx2.Client(base_url=address, timeout=60) as client:
        before = service.load.totals.drafted, service.load.totals.accepted
        usage = client.post(
            "/v1/completions", json={"model": "small", "prompt": "abc", "max_tokens": 50, "ignore_eos": True}
        ).json()["usage"]
        details = usage["completion_tokens_details"]
        drafted = service.load.totals.drafted - before[0]
        assert details["accepted_prediction_tokens"] == service.load.totals.accepted - before[1]
        assert details["accepted_prediction_tokens"] + details["rejected_prediction_tokens"] == drafted > 0
        # 50 tokens: the first from the prompt, each later step one and an accepted draft; the last step has no draft
        assert drafted + details["accepted_prediction_tokens"] in (48, 49)
        metrics = client.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
        values = dict(line.split() for line in metrics.text.splitlines() if not line.startswith("#"))
        assert int(values["flagrelease_drafted_tokens_total"]) == service.load.totals.drafted
        assert values["flagrelease_sequences_running"] == "0"
        seen = service.load.totals.acceptance
        assert int(values["flagrelease_verifications_total"]) == seen.verifications > 0
        assert int(values['flagrelease_verified_drafts_total{position="1"}']) == seen.verified[0]
        assert int(values['flagrelease_accepted_drafts_total{position="1"}']) == seen.accepted[0]
