"""Chats with DeepSeek-V4.1 through the engine: `generate` and `serve` write its prompts and read its answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from on_loopback import on_loopback

from flagrelease import engine
from flagrelease.cli import main
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.efforts import read_efforts
from flagrelease.engine.sampling import Draws, Sampler
from flagrelease.engine.serve.asked import asked_chat
from flagrelease.engine.serve.requests.protocol import ChatRequest
from flagrelease.engine.serve.server import Served, make_app
from flagrelease.engine.serve.service import Service
from flagrelease.engine.text import Tokenizer
from flagrelease.model.spelling import OF_V41
from flagrelease.model.turns import Message
from flagrelease.model.v41.chat import encode_messages
from flagrelease.model.v41.efforts import efforts_of

NAME = "small-v41"
TURNS: list[Message] = [
    {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "the"}, {"role": "system", "content": "a"},
]  # fmt: skip
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def served(v41_release: Path) -> Served:
    tokenizer = Tokenizer(v41_release)
    service = Service(Scheduler(Runner(engine.load(v41_release), rows=2, context=2048), tokenizer), queue_limit=8)
    return Served(service, tokenizer, NAME, "chat", read_efforts(v41_release))


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with (
        on_loopback(make_app(served), served.service) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield client


def test_its_efforts_are_numbers(v41_release: Path) -> None:
    found = read_efforts(v41_release)
    assert found == efforts_of()
    assert found.said == "efforts of the V4.1 revision, told by its family"


@pytest.mark.parametrize(
    ("mode", "more"),
    [
        ("chat", {}),
        ("low", {"reasoning_effort": "low"}),
        ("max", {"reasoning_effort": "max"}),
        (60, {"extra_body": {"reasoning_effort": 60}}),
    ],
)
def test_the_prompt_of_a_request_is_its_own(client: openai.OpenAI, served: Served, mode: Any, more: Any) -> None:
    answer = client.chat.completions.create(model=NAME, messages=TURNS, max_tokens=1, **more)  # type: ignore[arg-type]
    own = served.tokenizer.encode(encode_messages(TURNS, efforts_of().of(mode)))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(own)


def test_answers_are_read_by_its_own_spelling(served: Served) -> None:
    asked = asyncio.run(asked_chat(served, ChatRequest(model=NAME, messages=TURNS, tools=[TOOL])))
    assert asked.opening.spelling == OF_V41


@pytest.mark.slow  # 10 s: a prompt with tools, and a hundred steps
def test_a_call_reaches_the_client(client: openai.OpenAI, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's choices are replaced by a text that V4.1 is taught to write, all else is as always."""
    invoke = f'{OF_V41.opening(OF_V41.invoke)} name="f">{OF_V41.empty}{OF_V41.end_invoke}\n'
    tokens = [*served.tokenizer.encode(f"Look.\n\n{OF_V41.block}\n{invoke}{OF_V41.end_block}"), 1]
    monkeypatch.setattr(Sampler, "at", lambda sampler, n: n)
    monkeypatch.setattr(Draws, "of", lambda places, device: places)
    monkeypatch.setattr(
        "flagrelease.engine.batch.scheduler.choose_tokens",
        lambda ops, logits, places: torch.tensor([tokens[n] for n in places]),
    )
    answer = client.chat.completions.create(model=NAME, messages=TURNS[:1], tools=[TOOL])  # type: ignore[arg-type]
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Look.")
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("f", "{}")


def test_an_image_is_refused_at_the_door(client: openai.OpenAI) -> None:
    shown = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}]
    with pytest.raises(openai.BadRequestError, match="this model reads parts of type 'text' only"):
        client.chat.completions.create(model=NAME, messages=shown, max_tokens=1)  # type: ignore[arg-type]


def test_generate_chats_with_it(v41_release: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    (tmp_path / "prompts.jsonl").write_text('"the cat"\n')
    words = ["--prompts", str(tmp_path / "prompts.jsonl"), "--mode", "max", "--max-tokens", "2", "--out", str(out)]
    assert main(["generate", str(v41_release), *words]) == 0
    (line,) = [json.loads(line) for line in out.read_text().splitlines()]
    wanted = encode_messages([{"role": "user", "content": "the cat"}], efforts_of().of("max"))
    assert line["prompt_tokens"] == len(Tokenizer(v41_release).encode(wanted))
