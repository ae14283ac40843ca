"""`bench serve` says how many drafts were right, of what text, and nothing where the server does not tell."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest
from chat_standin import chat_server, well

from flagrelease.bench.serve.drafts import read_acceptance
from flagrelease.bench.serve.endpoint import ServedModel
from flagrelease.bench.serve.figures import ServeFigures
from flagrelease.bench.serve.report import remarks
from flagrelease.bench.serve.run import run_row
from flagrelease.bench.serve.scenario import ScenarioRow
from flagrelease.engine.batch.acceptance import Acceptance
from flagrelease.engine.batch.totals import Totals
from flagrelease.engine.serve.metrics import exposition
from flagrelease.engine.serve.service import Load

ROW = ScenarioRow("chat", 128, 64, 1)


def own(acceptance: Acceptance) -> str:
    return exposition(Load(0, 0, 0, Totals(acceptance=acceptance)))


# As vLLM 0.33.0 writes it: a counter for each engine and model, positions from 0, numbers as floats.
VLLM = """# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 6.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 4.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 5.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="1",model_name="m",position="0"} 3.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 2.0
vllm:spec_decode_num_accepted_tokens_per_pos_created{engine="0",model_name="m",position="1"} 1.79e+09
"""


@pytest.mark.parametrize("count", [3, 11, 12])
def test_own_counters_are_read_back(count: int) -> None:
    """Eleven places: they are numbers, not words in the order of the alphabet."""
    seen = Acceptance(900, tuple(range(800, 800 - count, -1)), tuple(range(500, 500 - count, -1)))
    assert read_acceptance(own(seen)) == seen
    assert read_acceptance(own(Acceptance())) == Acceptance()


def test_vllms_counters() -> None:
    assert read_acceptance(VLLM) == Acceptance(10, (10, 10), (8, 2))


@pytest.mark.parametrize("text", ["", "<html>no</html>", "sglang:spec_accept_length 2.5\n", "# HELP x\n"])
def test_servers_that_do_not_tell(text: str) -> None:
    assert read_acceptance(text) is None


def test_what_is_no_number_counts_nothing() -> None:
    assert read_acceptance("flagrelease_verifications_total NaN\n") == Acceptance()


def measured(*metrics: str) -> ServeFigures:
    async def work(url: str) -> ServeFigures:
        async with ServedModel(url, None, 5) as endpoint:
            found = await run_row(endpoint, "one", ROW, 2, 10, itertools.count())
            return ServeFigures.of(ROW, *found)

    with chat_server(well(), metrics=metrics) as (url, _):
        return asyncio.run(work(url))


def test_a_row_has_the_drafts_of_its_own_time() -> None:
    before, after = Acceptance(100, (100, 90), (80, 10)), Acceptance(110, (110, 98), (88, 14))
    figures = measured(own(before), own(after))
    assert figures.drafts == Acceptance(10, (10, 8), (8, 4))
    document = json.loads(json.dumps(figures.document()))["drafts"]
    assert (document["tokens_per_verification"], document["accepted_by_place"]) == (2.2, [8, 4])
    assert "random weights" in document["of"]
    said = remarks([figures])
    assert said[0] == "chat, 128 tokens, 1 at once: 2.20 tokens a verification (by place: 80%, 40%)"
    assert said[1].startswith("how many drafts were right was counted by the server")


@pytest.mark.parametrize("metrics", [(), (own(Acceptance()), own(Acceptance()))])
def test_a_row_without_drafts_says_nothing_of_them(metrics: tuple[str, ...]) -> None:
    figures = measured(*metrics)
    assert figures.drafts is None
    assert figures.document()["drafts"] is None
    assert remarks([figures]) == []
