"""Server-sent events are cut at CR, LF and CRLF only: `bench serve` called a correct answer with U+2028 garbage."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from typing import Any

import pytest
from chat_standin import Behaviour, Handler, chat_server, lines
from hypothesis import given
from hypothesis import strategies as st

from flagrelease.bench.serve.endpoint import ServedModel
from flagrelease.bench.serve.run import run_row
from flagrelease.bench.serve.sample import RequestSample
from flagrelease.bench.serve.scenario import ScenarioRow
from flagrelease.event_lines import EventLines

# what `str.splitlines` cuts at besides CR and LF; JSON has to escape the control characters among them, the rest not
CUT_BY_SPLITLINES = ["\u2028", "\u2029", "\u0085"]


def _ask(*behaviours: Behaviour) -> RequestSample:
    async def work(url: str) -> RequestSample:
        async with ServedModel(url, None, 5) as endpoint:
            return await endpoint.ask("one", "a b c", 16)

    with chat_server(*behaviours) as (url, _):
        return asyncio.run(work(url))


def _chunk(text: str) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": None}]}, ensure_ascii=False)


@pytest.mark.parametrize("character", CUT_BY_SPLITLINES)
def test_an_answer_may_hold_what_unicode_calls_a_line_end(character: str) -> None:
    sample = _ask(lines(f"data: {_chunk(f'word{character}end')}"))
    assert (sample.failure, sample.detail) == (None, "")
    assert len(sample.arrivals) == 2  # this one, and the stand-in's last


def test_every_line_end_of_the_standard_is_one() -> None:
    def behave(handler: Handler, body: dict[str, Any]) -> None:
        handler.begin()
        last = {"choices": [{"delta": {"content": "w"}, "finish_reason": "stop"}]}
        for piece in (f"data: {_chunk('a')}\r\r", f"data: {_chunk('b')}\r", "\n\r\n", f"data: {json.dumps(last)}\n\n"):
            handler.raw(piece)
        handler.end()

    sample = _ask(behave)
    assert (sample.failure, len(sample.arrivals)) == (None, 3)


def test_bytes_that_are_not_utf8_are_garbage() -> None:
    def behave(handler: Handler, body: dict[str, Any]) -> None:
        handler.begin()
        handler.wfile.write(b"9\r\ndata: \xff\n\n\r\n")
        handler.end()

    sample = _ask(behave)
    assert sample.failure == "garbage"
    assert "utf-8" in sample.detail


@given(st.text(alphabet="a\r\n\u2028\u0085é", max_size=30), st.lists(st.integers(0, 60), max_size=6))
def test_lines_do_not_depend_on_the_pieces(text: str, cuts: list[int]) -> None:
    data = text.encode()
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    splitter = EventLines()
    got = [line for a, b in itertools.pairwise(ends) for line in splitter.push(data[a:b])] + splitter.end()
    expected = re.sub("\r\n|\r", "\n", text).split("\n")
    assert got == (expected if expected[-1] else expected[:-1])


def test_a_caller_that_fails_stops_the_others() -> None:
    # with a bare gather the other callers went on asking the server after the bench had failed
    asked: list[int] = []

    class Endpoint:
        async def ask(self, model: str, text: str, max_tokens: int) -> RequestSample:
            number = len(asked)
            asked.append(number)
            await asyncio.sleep(0)
            if number == 2:
                raise LookupError("planted")
            return RequestSample(None, "", (1.0,), 2.0, 1, 1, True)

        async def acceptance(self) -> None:
            """It counts no drafts."""

    async def work() -> int:
        row = ScenarioRow("chat", 8, 8, 3)
        with pytest.raises(LookupError, match="planted"):
            await run_row(Endpoint(), "one", row, 100, 5, iter(range(1000)))  # type: ignore[arg-type]
        count = len(asked)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(asked) == count
        return len(asyncio.all_tasks())

    assert asyncio.run(work()) == 1
