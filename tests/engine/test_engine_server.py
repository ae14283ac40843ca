"""The server over loopback, with OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from engine_checkpoint import random_tokens
from on_loopback import on_loopback
from small_tokenizer import write_tokenizer

from flagrelease import engine
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.sampling import Draws, Sampler, Sampling
from flagrelease.engine.serve.requests.protocol import ChatRequest
from flagrelease.engine.serve.server import Served, make_app
from flagrelease.engine.serve.service import Service
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model
from flagrelease.model.v4 import chat
from flagrelease.model.v4.completion import CompletionStream, gather, parse_completion
from flagrelease.model.v4.efforts import Mode, efforts_of
from flagrelease.model.v4.encoded import Opening

NAME = "small-v4"
CONTEXT = 1500
CITY = f'<{chat.DSML}parameter name="city" string="true">Beijing</{chat.DSML}parameter>'
CALL = f'<{chat.DSML}invoke name="get_weather">\n{CITY}\n</{chat.DSML}invoke>\n'
TOOLS: list[Any] = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def served(quick_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    tokenizer = Tokenizer(folder)
    runner = Runner(engine.load(quick_release, "bf16", torch.float32), rows=3, context=CONTEXT)
    return Served(Service(Scheduler(runner, tokenizer), queue_limit=8), tokenizer, NAME, "chat", efforts_of("preview"))


@pytest.fixture(scope="module")
def address(served: Served) -> Iterator[str]:
    with on_loopback(make_app(served), served.service) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def model(served: Served) -> Model:
    return served.service._scheduler.runner.model


@pytest.fixture
def script(served: Served, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the model 'write' a text: its choices are replaced, all else is as always."""

    def write(text: str) -> None:
        tokens = [*served.tokenizer.encode(text), 1]
        monkeypatch.setattr(Sampler, "at", lambda sampler, n: n)
        monkeypatch.setattr(Draws, "of", lambda places, device: places)
        monkeypatch.setattr(
            "flagrelease.engine.batch.scheduler.choose_tokens",
            lambda ops, logits, places: torch.tensor([tokens[n] for n in places]),
        )

    return write


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]


def test_health(address: str) -> None:
    assert httpx2.get(f"{address}/health").status_code == 200


def test_greedy_completion_is_the_models(client: openai.OpenAI, served: Served, model: Model) -> None:
    prompt = random_tokens(30, vocabulary=263)
    answer = client.completions.create(model=NAME, prompt=prompt, max_tokens=10, temperature=0)
    expected = model.generate(prompt, Sampling(temperature=0, max_tokens=10))
    assert answer.choices[0].text == served.tokenizer.decode(expected)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (30, 10, 40)


def test_several_prompts_of_text(client: openai.OpenAI) -> None:
    prompts = ["alpha", "beta and more", "gamma", "delta"]  # more than rows
    together = client.completions.create(model=NAME, prompt=prompts, max_tokens=6, temperature=0)
    alone = [client.completions.create(model=NAME, prompt=p, max_tokens=6, temperature=0) for p in prompts]
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in together.choices] == [one.choices[0].text for one in alone]


def test_seed_reproduces(client: openai.OpenAI) -> None:
    texts = [
        client.completions.create(model=NAME, prompt="once", max_tokens=20, temperature=1.5, seed=seed).choices[0].text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_stop_string(client: openai.OpenAI, script: Any) -> None:
    script("first, second, third")
    answer = client.completions.create(model=NAME, prompt="x", max_tokens=50, stop=["sec", "third"])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("first, ", "stop")


def test_echo_with_logprobs_scores_the_prompt(client: openai.OpenAI, served: Served, model: Model) -> None:
    # what lm-eval's local-completions asks for
    prompt = served.tokenizer.encode("The capital of France")
    answer = client.completions.create(model=NAME, prompt=[prompt], max_tokens=1, echo=True, logprobs=2, temperature=0)
    choice = answer.choices[0]
    expected = model.logits(prompt).log_softmax(-1)
    assert choice.text.startswith("The capital of France")
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.text_offset is not None
    assert len(choice.logprobs.tokens) == len(prompt) + 1
    assert choice.logprobs.token_logprobs[0] is None
    for n, token in enumerate(prompt[1:]):
        assert choice.logprobs.token_logprobs[n + 1] == pytest.approx(float(expected[n, token]), abs=1e-3)
    assert choice.logprobs.text_offset[:4] == [0, 1, 2, 3]
    assert choice.logprobs.top_logprobs is not None
    assert max(choice.logprobs.top_logprobs[-1].values()) == choice.logprobs.token_logprobs[-1]


def test_streamed_completion_equals_the_whole(client: openai.OpenAI) -> None:
    asked: Any = {"model": NAME, "prompt": "stream", "max_tokens": 12, "temperature": 0, "logit_bias": {"1": -100}}
    whole = client.completions.create(**asked, logprobs=1)
    stream = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage


def test_chat_with_reasoning_and_tools(client: openai.OpenAI, script: Any) -> None:
    script(f"The user asks for the weather.</think>Let me look.\n\n{chat.TOOL_CALLS}\n{CALL}{chat.END_TOOL_CALLS}")
    answer = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "Weather in Beijing?"}], tools=TOOLS, reasoning_effort="high"
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    assert choice.message.model_extra == {"reasoning_content": "The user asks for the weather."}
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Beijing"})


def test_streamed_chat_equals_the_whole(client: openai.OpenAI, script: Any) -> None:
    script(f"Hm, 世界.</think>A < b </thin> c.\n\n{chat.TOOL_CALLS}\n{CALL}{CALL}{chat.END_TOOL_CALLS}")
    stream = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": "x"}],
        tools=TOOLS,
        stream=True,
        extra_body={"thinking": {"type": "enabled"}},
    )
    content = reasoning = ""
    calls, finish = [], None
    for chunk in stream:
        delta = chunk.choices[0].delta
        content += delta.content or ""
        reasoning += (delta.model_extra or {}).get("reasoning_content", "")
        calls += delta.tool_calls or []
        finish = chunk.choices[0].finish_reason or finish
    assert (reasoning, content, finish) == ("Hm, 世界.", "A < b </thin> c.", "tool_calls")
    names = [(call.index, call.function.name) for call in calls if call.function and call.function.name]
    assert names == [(0, "get_weather"), (1, "get_weather")]
    assert len(calls) > 20  # the arguments come with the tokens, here of a byte each


def test_chat_prompt_is_the_encoding(client: openai.OpenAI, served: Served, model: Model) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    answer = client.chat.completions.create(model=NAME, messages=messages, max_completion_tokens=8, temperature=0)
    prompt = served.tokenizer.encode("<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜></think>")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    expected = model.generate(prompt, Sampling(temperature=0, max_tokens=8))
    assert answer.choices[0].message.content == served.tokenizer.decode(expected)


def test_chat_logprobs(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Hi"}]
    answer = client.chat.completions.create(
        model=NAME, messages=messages, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content
    assert tokens is not None
    assert len(tokens) == 3
    for token in tokens:
        assert len(token.top_logprobs) == 2
        assert token.logprob == token.top_logprobs[0].logprob <= 0
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) < 1


def test_a_block_that_is_not_closed_has_calls_and_one_that_has_none_is_text(client: openai.OpenAI, script: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": "x"}]
    script(f"So:\n\n{chat.TOOL_CALLS}\n{CALL}")
    answer = client.chat.completions.create(model=NAME, messages=messages, tools=TOOLS)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content == "So:"
    script(f"So:\n\n{chat.TOOL_CALLS}\n")
    answer = client.chat.completions.create(model=NAME, messages=messages, tools=TOOLS)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == f"So:\n\n{chat.TOOL_CALLS}\n"


@pytest.mark.parametrize("value", ["[" * 9, '"\\ud83d"', "1e999", "\u2028\x85"])
def test_values_of_calls_that_python_cannot_read(client: openai.OpenAI, script: Any, value: str) -> None:
    # half an emoji was a 500; U+2028 and U+0085 cut lines of the stream in two
    messages: list[Any] = [{"role": "user", "content": "x"}]
    parameter = f'<{chat.DSML}parameter name="a" string="false">{value}</{chat.DSML}parameter>'
    written = f"{value[:9]}\n\n{chat.TOOL_CALLS}\n{CALL.replace(CITY, parameter)}{chat.END_TOOL_CALLS}"
    script(written)
    whole = client.chat.completions.create(model=NAME, messages=messages, tools=TOOLS).choices[0]
    script(written)
    chunks = list(client.chat.completions.create(model=NAME, messages=messages, tools=TOOLS, stream=True))
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    functions = [call.function for delta in deltas for call in delta.tool_calls or [] if call.function]
    assert whole.message.tool_calls
    assert whole.message.tool_calls[0].type == "function"
    arguments = whole.message.tool_calls[0].function.arguments
    assert "".join(function.arguments or "" for function in functions) == arguments
    assert "".join(delta.content or "" for delta in deltas) == whole.message.content == value[:9]
    shown = arguments.removeprefix('{"a": ').removesuffix("}")
    assert shown == value if value[0] in "91" else json.loads(shown) == value


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_parts_do_not_depend_on_the_pieces(size: int) -> None:
    text = f"think</think>say\n\nmore <｜DSML｜ x\n\n{chat.TOOL_CALLS}\n{CALL}{chat.END_TOOL_CALLS}"
    thinking = Opening("reasoning_content", thinks=True, tools=True)
    stream = CompletionStream.start(thinking)
    pieces = [piece for n in range(0, len(text), size) for piece in stream.push(text[n : n + size])]
    whole = gather([*pieces, *stream.end()], thinking, as_taught=stream.as_taught)
    assert whole == parse_completion(text, thinking)
    assert (whole.reasoning, whole.content) == ("think", "say\n\nmore <｜DSML｜ x")
    assert [call.name for call in whole.tool_calls] == ["get_weather"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": -1}, "temperature"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"n": 0}, "n"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "known roles are"),
        ({"messages": [{"role": "user", "content": "x" * CONTEXT}]}, "the context is"),
        ({"max_tokens": CONTEXT}, "the context is"),
        ({"stream": True, "max_tokens": CONTEXT}, "the context is"),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs"),
        ({"reasoning_effort": "high", "extra_body": {"thinking": {"type": "disabled"}}}, "thinking is disabled"),
    ],
)
def test_requests_that_are_refused(client: openai.OpenAI, change: dict[str, Any], said: str) -> None:
    request: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    with pytest.raises(openai.BadRequestError, match=said):
        client.chat.completions.create(**(request | change))


@pytest.mark.parametrize(
    ("change", "default", "mode"),
    [
        ({}, "max", "max"),
        ({"reasoning_effort": "none"}, "max", "chat"),
        ({"reasoning_effort": "xhigh"}, "chat", "xhigh"),
        ({"thinking": {"type": "enabled"}, "reasoning_effort": "minimal"}, "chat", "minimal"),
        ({"thinking": {"type": "enabled"}}, "chat", "thinking"),
        ({"thinking": {"type": "adaptive"}}, "low", "low"),  # the server's, which thinks
        ({"thinking": {"type": "disabled"}}, "low", "chat"),
    ],
)
def test_the_mode_that_a_chat_asks_for(change: dict[str, Any], default: Mode, mode: Mode) -> None:
    request = ChatRequest.model_validate({"model": NAME, "messages": [{"role": "user", "content": "x"}], **change})
    assert request.mode(default) == mode


def test_a_caller_who_leaves_frees_the_row(client: openai.OpenAI, served: Served, script: Any) -> None:
    script("a" * 1000)
    messages: list[Any] = [{"role": "user", "content": "x"}]
    with client.chat.completions.create(model=NAME, messages=messages, stream=True) as stream:
        next(iter(stream))
    deadline = time.monotonic() + 240
    while served.service._scheduler.busy and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not served.service._scheduler.busy


def test_a_stopped_engine_tells_its_callers(
    quick_release: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(engine.load(quick_release, "bf16", torch.float32), rows=1, context=50)
    service = Service(Scheduler(runner, served.tokenizer), queue_limit=8)
    app = make_app(Served(service, served.tokenizer, NAME, "chat", efforts_of("preview")))
    body = {"model": NAME, "prompt": "x", "max_tokens": 2}

    async def ask() -> tuple[int, int]:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as caller:
            answer = await caller.post("/v1/completions", json=body)
            return answer.status_code, (await caller.get("/health")).status_code

    service.start()
    assert asyncio.run(ask()) == (200, 200)
    service.stop()
    assert asyncio.run(ask()) == (503, 503)
