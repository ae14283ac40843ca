"""`bench serve` against a server that is told what to do: times by a clock of the test, every fault by its name."""

from __future__ import annotations

import asyncio
import itertools
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from chat_standin import Behaviour, chat_server, cut, lines, no_end, refuse, silence, well
from typer.testing import CliRunner

from flagrelease import cli
from flagrelease.bench.plot import Chart, PlotSeries, draw
from flagrelease.bench.serve.commands import register
from flagrelease.bench.serve.endpoint import ServedModel
from flagrelease.bench.serve.figures import Percentiles, ServeFigures
from flagrelease.bench.serve.run import run_row
from flagrelease.bench.serve.sample import RequestSample
from flagrelease.bench.serve.scenario import ScenarioRow, Sizes, plan_rows, write_prompt
from flagrelease.engine.batch.acceptance import Acceptance
from flagrelease.errors import NetworkError, UsageError


def ask(*behaviours: Behaviour, timeout: float = 5, count: int = 1) -> list[RequestSample]:
    """Samples whose clock goes on by a second whenever it is looked at."""

    async def work(url: str) -> list[RequestSample]:
        ticks = itertools.count()
        async with ServedModel(url, None, timeout, lambda: float(next(ticks))) as endpoint:
            return [await endpoint.ask("one", "a b c", 16) for _ in range(count)]

    with chat_server(*behaviours) as (url, _):
        return asyncio.run(work(url))


@pytest.mark.parametrize("part", ["content", "reasoning_content"])
def test_a_whole_answer_is_timed(part: str) -> None:
    (sample,) = ask(well(pieces=3, part=part))
    # sent at 0; each event is a line and an empty one: the role at 1, 2, the pieces at 3, 5, 7
    assert sample.arrivals == (3, 5, 7)
    assert (sample.failure, sample.prompt_tokens, sample.tokens, sample.counted) == (None, 7 + 9, 6, True)
    assert sample.first == 3
    assert sample.per_token == pytest.approx(4 / 5)
    assert sample.longest_gap == 2
    assert sample.ended > 7


def test_a_server_that_does_not_count() -> None:
    (sample,) = ask(well(pieces=4, usage=False))
    assert (sample.tokens, sample.counted, sample.prompt_tokens) == (4, False, None)


@pytest.mark.parametrize(
    ("behaviour", "kind", "detail"),
    [
        (refuse(429, {"Retry-After": "7"}), "429", "not now"),
        (refuse(500), "500", "not now"),
        (cut, "cut", ""),
        (no_end, "cut", "without a finish_reason"),
        (lines("data: {"), "garbage", "no chunk of a chat completion: ' {'"),
        (lines("data: null"), "garbage", "no chunk"),
        (lines('data: {"choices": [{}]}'), "garbage", "no chunk"),
        (lines('data: {"choices": [], "usage": 5}'), "garbage", "no chunk"),
        (lines("<html>"), "garbage", "no server-sent event: '<html>'"),
        (lines('data: {"error": {"message": "out of memory"}}'), "error in stream", "out of memory"),
        (lambda handler, body: handler.answer(200, '{"choices": []}'), "garbage", "no server-sent event"),
        (silence, "timeout", "ReadTimeout"),
        (well(pieces=0), "empty", "without text"),
    ],
)
def test_faults_have_names(behaviour: Behaviour, kind: str, detail: str) -> None:
    first, second = ask(behaviour, well(), timeout=1 if behaviour is silence else 60, count=2)
    assert first.failure == kind
    assert detail in first.detail
    assert first.retry_after == (7 if kind == "429" else 0)
    assert second.failure is None  # and the next request is none the worse


def test_comments_and_other_fields_are_no_fault() -> None:
    assert ask(lines(": keep alive", "event: message", "id: 5", "retry: 10"))[0].failure is None


def test_nobody_listens() -> None:
    async def work() -> RequestSample:
        async with ServedModel("http://127.0.0.1:9", None, 1) as endpoint:
            with pytest.raises(NetworkError, match="models"):
                await endpoint.models()
            return await endpoint.ask("one", "x", 5)

    assert asyncio.run(work()).failure == "connection"


def test_the_key_is_sent_and_v1_is_not_doubled() -> None:
    async def work(url: str) -> list[str]:
        async with ServedModel(f"{url}/v1/", "secret", 5) as endpoint:
            await endpoint.ask("one", "x", 5)
            return await endpoint.models()

    with chat_server(well(), models=("a", "b")) as (url, handler):
        assert asyncio.run(work(url)) == ["a", "b"]
        ((body, authorization),) = handler.requests
    assert authorization == "Bearer secret"
    assert (body["model"], body["max_tokens"], body["stream"]) == ("one", 5, True)


def test_a_key_that_a_server_quotes_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLAGRELEASE_TEST_KEY", "sk-planted-9")
    quotes: Behaviour = lambda handler, body: handler.answer(401, "the key sk-planted-9 is wrong")  # noqa: E731
    with chat_server(quotes) as (url, told):
        assert cli.main(["bench", "serve", url, "--key-env", "FLAGRELEASE_TEST_KEY"]) == 6
    assert told.requests[0][1] == "Bearer sk-planted-9"
    said = "".join(capfd.readouterr())
    assert "the key [hidden] is wrong" in said
    assert "sk-planted-9" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["http://me:SECRET@127.0.0.1:1/v1"], "a user and a password in the address are refused"),
        (["http://chip:8000", "--key-env", "PATH"], "is plain http to another machine"),
        (["chip:8000"], "an http or https address is expected"),
    ],
)
def test_addresses_that_are_refused(words: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "serve", *words]) == 2
    err = capfd.readouterr().err
    assert said in err
    assert "SECRET" not in err


def test_percentiles_are_numpys() -> None:
    values = np.random.default_rng(0).exponential(size=37).tolist()
    got = Percentiles.of(values)
    assert got is not None
    assert [got.p50, got.p90, got.p99] == pytest.approx(np.percentile(values, [50, 90, 99]).tolist(), rel=1e-12)
    assert Percentiles.of([2.0]) == Percentiles(2.0, 2.0, 2.0)
    assert Percentiles.of([]) is None


def sample(failure: str | None, arrivals: tuple[float, ...], tokens: int) -> RequestSample:
    return RequestSample(
        failure, f"detail of {failure}", arrivals, arrivals[-1] + 1 if arrivals else 9.0, 100, tokens, True
    )


def test_figures_count_whole_answers_only() -> None:
    row = ScenarioRow("chat", 128, 64, 2)
    samples = [
        sample(None, (1.0, 2.0, 5.0), 9),
        sample("cut", (0.1, 0.2), 2),
        sample(None, (3.0, 4.0), 11),
        sample("429", (), 0),
        sample("429", (), 0),
    ]
    figures = ServeFigures.of(row, samples, 10.0)
    assert (figures.answered, figures.tokens, figures.throughput) == (2, 20, 2.0)
    assert figures.failures == {"429": 2, "cut": 1}
    assert figures.example == "detail of cut"
    assert figures.first == Percentiles(2.0, pytest.approx(2.8), pytest.approx(2.98))
    assert figures.per_token is not None
    assert figures.per_token.p50 == pytest.approx((4 / 8 + 1 / 10) / 2)
    assert figures.gap is not None
    assert figures.gap.p50 == 2.0  # 3 and 1
    nothing = ServeFigures.of(row, samples[3:], 10.0)
    assert (nothing.answered, nothing.throughput, nothing.first, nothing.whole) == (0, 0, None, None)


def test_sizes_are_fitted_by_what_the_server_counts() -> None:
    sizes = Sizes.fit((50, 170), (250, 770))  # 20 and 3 a word
    assert sizes.words(620) == 200
    assert sizes.words(1) == 1


def test_no_two_prompts_begin_alike() -> None:
    prompts = [write_prompt(50, seed) for seed in range(100)]
    assert len({prompt[:8] for prompt in prompts}) == 100
    assert write_prompt(50, 3) == prompts[3]


def test_rows_of_scenarios() -> None:
    rows = plan_rows(["chat", "context"], [1, 8], [512, 4096], 64, 128, 8192)
    assert rows == [
        ScenarioRow("chat", 128, 64, 1), ScenarioRow("chat", 128, 64, 8), ScenarioRow("context", 512, 64, 1),
        ScenarioRow("context", 4096, 64, 1),
    ]  # fmt: skip


def test_so_many_at_once_and_no_more() -> None:
    # 4 callers, 3 rounds, every answer takes 0.1 s: 3 times that, not 12, and one request to warm up
    async def work(url: str) -> tuple[list[RequestSample], float, Acceptance | None]:
        async with ServedModel(url, None, 5) as endpoint:
            return await run_row(endpoint, "one", ScenarioRow("chat", 10, 8, 4), 3, 10, itertools.count())

    with chat_server(well(pieces=2, pause=0.05)) as (url, handler):
        samples, seconds, drafts = asyncio.run(work(url))
        assert len(handler.requests) == 13
        assert len({body["messages"][0]["content"] for body, _ in handler.requests}) == 13
    assert len(samples) == 12
    assert seconds >= 0.3
    assert drafts is None


def run(*words: Any, expect: type[Exception] | None = None) -> Any:
    app = typer.Typer()
    group = typer.Typer()
    register(group)
    group.callback()(lambda: None)
    app.add_typer(group, name="bench")
    arguments = ["bench", "serve", *(str(word) for word in words)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=expect is not None)
    assert (result.exit_code == 0) == (expect is None), result.output
    assert expect is None or isinstance(result.exception, expect)
    return result


def test_the_command_measures_draws_and_counts_faults(tmp_path: Path) -> None:
    drawing = tmp_path / "serve.svg"
    faults = [well()] * 3 + [refuse(429), cut, lines("junk"), well()]  # sizes twice, a warm-up, then 3 of 6 fail
    words = ["--scenario", "chat", "--scenario", "context", "--concurrency", "2", "--contexts", "64,128",
             "--rounds", 3]  # fmt: skip
    with chat_server(*faults) as (url, handler):
        result = run(url, *words, "--json", "--plot", drawing)
        asked = [len(body["messages"][0]["content"].split()) for body, _ in handler.requests]
    document = json.loads(result.stdout)
    assert (document["model"], document["url"]) == ("one", url)
    chat, *contexts = document["rows"]
    assert chat["failures"] == {"429": 1, "cut": 1, "garbage": 1}
    assert (chat["answered"], chat["tokens"]) == (3, 18)
    assert chat["throughput"] == pytest.approx(18 / chat["seconds"])
    assert [row["row"]["prompt_tokens"] for row in contexts] == [64, 128]
    # the server counts 3 tokens a word and 7: the prompts are as long as they were to be
    for row in contexts:
        assert abs(row["prompt_tokens"] - row["row"]["prompt_tokens"]) <= 3
        assert row["answered"] == 3
    assert asked[1] - asked[0] == 100
    assert "chat: 128 tokens, 2 at once: 3 answered, 3 failed" in result.stderr
    # One failure in full, whichever of the requests under way at once was told first.
    assert any(said in result.stderr for said in ("not now", "peer closed connection", "no server-sent event"))
    shapes = [element.tag.rpartition("}")[2] for element in ElementTree.parse(drawing).iter()]
    assert shapes.count("polyline") >= 5


def test_the_table_shows_percentiles_and_failures() -> None:
    with chat_server(*[well()] * 3, refuse(503), well(usage=True)) as (url, _):
        shown = run(url, "--scenario", "chat", "--concurrency", 1, "--rounds", 2).stdout
    head, line = shown.splitlines()[-2:]
    assert head.split()[:6] == ["scenario", "prompt", "answer", "at", "once", "answered"]
    assert line.split()[:5] == ["chat", "127", "6", "1", "1"]  # 40 words of 3 tokens and 7
    assert line.endswith("1 x 503")


def test_a_dead_server_is_an_error_after_the_table() -> None:
    with chat_server(*[well()] * 2, refuse(500)) as (url, _):
        result = run(url, "--scenario", "chat", "--concurrency", 1, expect=NetworkError)
    assert "4 x 500" in result.stdout
    with chat_server(refuse(401)) as (url, _):
        result = run(url, expect=NetworkError)
    assert "the first request failed (401)" in str(result.exception)


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--concurrency", "1,x"], UsageError, "numbers from 1 on"),
        (["--contexts", "0"], UsageError, "numbers from 1 on"),
        (["--key-env", "FLAGRELEASE_TEST_NO_SUCH_KEY"], UsageError, "no such variable"),
        ([], NetworkError, "2 models (a, b): choose one with --model"),
    ],
)
def test_requests_that_cannot_be_measured(words: list[str], error: type[Exception], said: str) -> None:
    with chat_server(well(), models=("a", "b")) as (url, _):
        assert said in str(run(url, *words, expect=error).exception)


def test_a_chart_puts_points_where_they_belong() -> None:
    svg = draw([Chart("A < B", "x", "y", (PlotSeries("s", ((1, 0), (4, 35), (16, 70))), PlotSeries("empty", ())))])
    root = ElementTree.fromstring(svg)
    (line,) = [element for element in root.iter() if element.tag.endswith("polyline")]
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in line.attrib["points"].split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)  # 1, 4, 16 are evenly spaced
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "A < B" in texts
    assert "80" in texts  # the axis ends at a round number
    assert "empty" not in texts
