"""Continuous batching: whatever comes and goes beside it, a sequence gets the tokens that it gets alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_checkpoint import random_tokens
from small_tokenizer import write_tokenizer

from flagrelease import engine
from flagrelease.engine.batch.orders import Next, Prefill, Together
from flagrelease.engine.batch.reading import Piece, allowance, passes
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler, generate_all
from flagrelease.engine.batch.sequence import Generated
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model

# float32, logits of about 10: a different order of additions only.
LIMIT = 1e-3
CONTEXT = 240
EOS = 1


@pytest.fixture(scope="module")
def model(quick_release: Path) -> Model:
    return engine.load(quick_release, "bf16", torch.float32, mtp=True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


class Recorder(Runner):
    """A runner that keeps its orders."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.orders: list[Any] = []

    def run(self, order: Any) -> torch.Tensor:
        self.orders.append(order)
        return super().run(order)


def alone(model: Model, tokenizer: Tokenizer, prompt: list[int], sampling: Sampling) -> tuple[str, list[float]]:
    """Text and log-probabilities by one prefill of everything: no scheduler, no cache of rows, no chunks."""
    tokens = model.generate(prompt, sampling)
    ended = sampling.max_tokens is not None and len(tokens) < sampling.max_tokens
    whole = [*tokens, EOS] if ended else tokens
    logp = model.logits([*prompt, *whole]).log_softmax(-1)[len(prompt) - 1 : -1]
    return tokenizer.decode(tokens), logp[torch.arange(len(whole)), whole].tolist()


def draw_request(chance: random.Random) -> tuple[list[int], Sampling]:
    length = chance.choice([1, 2, 5, 17, 60, 130, 200])
    sampling = Sampling(
        temperature=chance.choice([0, 0.7, 1.0, 1.5]),
        top_p=chance.choice([1.0, 1.0, 0.8]),
        seed=chance.randrange(1000),
        max_tokens=chance.randint(1, 20),
        logprobs=0,
    )
    return random_tokens(length, seed=chance.randrange(1000), vocabulary=263), sampling


@pytest.mark.parametrize("seed", range(4))
def test_arrivals_and_departures_change_nothing(model: Model, tokenizer: Tokenizer, seed: int) -> None:
    chance = random.Random(seed)
    scheduler = Scheduler(
        Runner(model, rows=chance.randint(1, 5), context=CONTEXT, speculate=seed % 2 == 1),
        tokenizer,
        budget=chance.choice([5, 7, 32, 300]),
    )
    requests: dict[int, tuple[list[int], Sampling]] = {}
    results: dict[int, Generated] = {}
    cancelled: set[int] = set()
    left = 8
    while left or scheduler.busy:
        while left and chance.random() < 0.3:
            request = draw_request(chance)
            key = scheduler.submit(*request)
            requests[key], results[key] = request, Generated()
            left -= 1
        if requests and len(cancelled) < 3 and chance.random() < 0.2:
            key = chance.choice(list(requests))
            scheduler.cancel(key)
            cancelled.add(key)
        for event in scheduler.step():
            assert event.key not in cancelled
            results[event.key].add(event)
    finished = set(requests) - cancelled
    assert len(finished) >= 5
    for key in finished:
        text, logprobs = alone(model, tokenizer, *requests[key])
        assert results[key].text == text
        got = torch.tensor([score.logprob for score in results[key].scores])
        assert (got - torch.tensor(logprobs)).abs().max() <= LIMIT


def test_a_long_prompt_delays_running_answers_by_a_budget(model: Model, tokenizer: Tokenizer) -> None:
    runner = Recorder(model, rows=2, context=CONTEXT)
    scheduler = Scheduler(runner, tokenizer, budget=16)
    scheduler.submit(random_tokens(3), Sampling(temperature=0, max_tokens=40))
    scheduler.step()
    scheduler.submit(random_tokens(200), Sampling(temperature=0, max_tokens=2))
    runner.orders.clear()
    while scheduler.waiting or scheduler.active == 2:
        scheduler.step()
    kinds = "".join("n" if isinstance(order, Next) else "p" for order in runner.orders)
    assert kinds.startswith("pn" * 13)  # 200 tokens in pieces of 16, a token of the running answer after each
    pieces = [order.tokens for order in runner.orders if isinstance(order, Prefill)]
    assert max(map(len, pieces)) == 16
    assert [token for piece in pieces for token in piece] == random_tokens(200)


def test_a_budget_reads_several_short_prompts(model: Model, tokenizer: Tokenizer) -> None:
    runner = Recorder(model, rows=6, context=CONTEXT)
    scheduler = Scheduler(runner, tokenizer, budget=20)
    for n in range(2):
        scheduler.submit(random_tokens(8, seed=n), Sampling(temperature=0, max_tokens=9))
    assert [event.key for event in scheduler.step()] == [1, 2]
    for n in range(2, 5):
        scheduler.submit(random_tokens(8, seed=n), Sampling(temperature=0, max_tokens=9))
    assert [event.key for event in scheduler.step()] == [1, 2]  # what is under way comes before the others are read
    assert [event.key for event in scheduler.step()] == [3, 4]  # 8 + 8, and half of the fifth
    assert sorted(event.key for event in scheduler.step()) == [1, 2, 3, 4]
    assert [event.key for event in scheduler.step()] == [5]
    together = [[len(piece.tokens) for piece in order.pieces] for order in runner.orders if isinstance(order, Together)]
    assert together == [[8, 8], [8, 8, 4]]  # rows side by side are read in one pass


def test_more_is_read_where_more_wait_than_run(model: Model, tokenizer: Tokenizer) -> None:
    scheduler = Scheduler(Runner(model, rows=6, context=CONTEXT), tokenizer, budget=20)
    for n in range(6):
        scheduler.submit(random_tokens(8, seed=n), Sampling(temperature=0, max_tokens=3))
    assert [event.key for event in scheduler.step()] == [1, 2, 3, 4, 5, 6]


def test_rows_side_by_side_share_a_pass(model: Model, tokenizer: Tokenizer) -> None:
    def piece(row: int, length: int, **sampling: Any) -> Piece:
        scheduler = Scheduler(Runner(model, rows=1, context=CONTEXT), tokenizer)
        scheduler.submit([5] * length, Sampling(max_tokens=1, **sampling))
        each = scheduler._waiting[0]
        each.row = row
        return Piece(each, 0, each.prompt)

    def rows(*pieces: Piece, chunk: int = 50) -> list[list[int]]:
        return [[piece.each.row for piece in group] for group in passes(pieces, chunk)]

    assert rows(piece(0, 9), piece(1, 9), piece(3, 9)) == [[0, 1], [3]]
    assert rows(piece(0, 9), piece(1, 9, prompt_logprobs=0), piece(2, 9)) == [[0], [1], [2]]  # all its logits are kept
    assert rows(piece(0, 2), piece(1, 40)) == [[0, 1]]  # 42 of 80 tokens are no padding
    assert rows(piece(0, 2), piece(1, 2), piece(2, 40)) == [[0, 1], [2]]
    assert rows(*(piece(n, 50) for n in range(6))) == [[0, 1, 2, 3], [4, 5]]  # at most four chunks


def test_a_budget_grows_by_those_who_wait_for_one_who_runs() -> None:
    # by hand: budgets of 10
    assert [allowance(10, wait, run) for wait, run in ((1, 0), (1, 9), (8, 9), (9, 9), (18, 9), (27, 2), (64, 1))] == [
        10, 10, 10, 10, 20, 130, 160,
    ]  # fmt: skip


def test_a_piece_is_shorter_where_many_answers_run() -> None:
    # by hand: of 512, 8 for each that waits over those who run; 64 at least
    cases = {
        (1, 8): 512, (1, 9): 256, (1, 16): 256, (1, 17): 128, (1, 32): 128, (1, 64): 64, (1, 500): 64, (2, 64): 128,
        (8, 64): 512, (64, 64): 512, (128, 64): 1024,
    }  # fmt: skip
    assert {case: allowance(512, *case) for case in cases} == cases
    assert allowance(10, 1, 64) == 10  # a budget is never exceeded for that


def test_first_come_first_served(model: Model, tokenizer: Tokenizer) -> None:
    scheduler = Scheduler(Runner(model, rows=2, context=CONTEXT), tokenizer, budget=10)
    lengths = [100, 1, 1, 50, 1]
    keys = [scheduler.submit(random_tokens(n), Sampling(temperature=0, max_tokens=3)) for n in lengths]
    begun: list[int] = []
    while scheduler.busy:
        begun += [event.key for event in scheduler.step() if event.generated == 1]
    assert begun == keys


def test_a_cancelled_prompt_stops_being_read(model: Model, tokenizer: Tokenizer) -> None:
    runner = Recorder(model, rows=1, context=CONTEXT)
    scheduler = Scheduler(runner, tokenizer, budget=10)
    first = scheduler.submit(random_tokens(100), Sampling(temperature=0, max_tokens=3))
    scheduler.submit(random_tokens(20, seed=1), Sampling(temperature=0, max_tokens=3))
    assert scheduler.step() == []
    scheduler.cancel(first)
    result = Generated()
    while scheduler.busy:
        for event in scheduler.step():
            result.add(event)
    assert [len(order.tokens) for order in runner.orders if isinstance(order, Prefill)] == [10, 10, 10]
    how = Sampling(temperature=0, max_tokens=3)
    assert result.text == alone(model, tokenizer, random_tokens(20, seed=1), how)[0]


def test_prompts_are_scored_piece_by_piece(model: Model, tokenizer: Tokenizer) -> None:
    prompt = random_tokens(70)
    scheduler = Scheduler(Runner(model, rows=1, context=CONTEXT), tokenizer, budget=9)
    (result,) = generate_all(scheduler, [prompt], Sampling(temperature=0, max_tokens=2, logprobs=3, echo=True))
    expected = model.logits(prompt).log_softmax(-1)
    assert [score.token for score in result.scores[:70]] == prompt
    assert len(result.scores) == 72
    got = torch.tensor([score.logprob for score in result.scores[1:70]])
    assert (got - expected[torch.arange(69), prompt[1:]]).abs().max() < LIMIT


def test_totals_count(model: Model, tokenizer: Tokenizer) -> None:
    scheduler = Scheduler(Runner(model, rows=2, context=CONTEXT), tokenizer)
    results = generate_all(scheduler, [random_tokens(n) for n in (30, 4, 11)], Sampling(temperature=0, max_tokens=6))
    assert (scheduler.totals.prompt, scheduler.totals.generated) == (45, sum(r.generated for r in results))
    assert (scheduler.totals.drafted, scheduler.totals.accepted) == (0, 0)
