"""A beginning that many prompts share is read once, and nobody can tell: results are equal to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_checkpoint import random_tokens
from ranks import on_ranks
from small_tokenizer import write_tokenizer

from flagrelease import engine
from flagrelease.engine.batch import prefixes
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.batch.sequence import Event
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.cache import Cache, SavedRow
from flagrelease.engine.v4.model import Model

CHUNK, CONTEXT = 40, 260
SHARED = random_tokens(150, vocabulary=263)  # three whole chunks; windows of 4 and of 128 are open at their ends
ASKED = [[*SHARED, *random_tokens(n, seed=n, vocabulary=263)] for n in (5, 30, 61)]
HOW = Sampling(temperature=1.0, seed=3, max_tokens=12, logprobs=2)


@pytest.fixture(scope="module")
def model(quick_release: Path) -> Model:
    return engine.load(quick_release, "bf16", torch.float32, mtp=True, chunk=CHUNK)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


def schedule(model: Model, tokenizer: Tokenizer, *, speculate: bool = False) -> Scheduler:
    return Scheduler(Runner(model, 2, CONTEXT, speculate=speculate), tokenizer)


def answer(scheduler: Scheduler, prompt: list[int], how: Sampling = HOW) -> list[Event]:
    """The events of one sequence, without its key."""
    key, events = scheduler.submit(prompt, how), list[Event]()
    while scheduler.busy:
        events += [event for event in scheduler.step() if event.key == key]
    return events


def told(events: list[Event]) -> list[Any]:
    return [(event.text, event.scores, event.generated, event.finish, event.acceptance) for event in events]


@pytest.mark.parametrize("speculate", [False, True])
def test_what_is_kept_gives_the_same_to_the_bit(model: Model, tokenizer: Tokenizer, *, speculate: bool) -> None:
    expected = [told(answer(schedule(model, tokenizer, speculate=speculate), prompt)) for prompt in ASKED]
    scheduler = schedule(model, tokenizer, speculate=speculate)
    found = [answer(scheduler, prompt) for prompt in ASKED]
    assert [told(events) for events in found] == expected
    assert [events[-1].cached for events in found] == [0, 0, 120]  # seen, kept, used
    assert (scheduler.totals.prompt, scheduler.totals.cached) == (sum(map(len, ASKED)) - 120, 120)


@pytest.mark.gpu
@pytest.mark.parametrize("speculate", [False, True])
def test_the_same_to_the_bit_on_the_device(quick_release: Path, tokenizer: Tokenizer, *, speculate: bool) -> None:
    model = engine.load(quick_release, "bf16", torch.float32, "auto", mtp=True, chunk=CHUNK)
    test_what_is_kept_gives_the_same_to_the_bit(model, tokenizer, speculate=speculate)


def test_a_sequence_beside_it_gets_its_own(model: Model, tokenizer: Tokenizer) -> None:
    scheduler = schedule(model, tokenizer)
    for prompt in ASKED[:2]:
        answer(scheduler, prompt)
    beside = scheduler.submit([9, 8, 7], HOW)  # has row 0: what was kept goes to the other one
    events: dict[int, list[Event]] = {beside: [], scheduler.submit(ASKED[2], HOW): []}
    while scheduler.busy:
        for event in scheduler.step():
            events[event.key].append(event)
    texts = ["".join(event.text for event in each) for each in events.values()]
    alone = [
        "".join(event.text for event in answer(schedule(model, tokenizer), prompt)) for prompt in ([9, 8, 7], ASKED[2])
    ]
    assert texts == alone


def test_a_prompt_that_is_scored_is_read(model: Model, tokenizer: Tokenizer) -> None:
    scheduler = schedule(model, tokenizer)
    for prompt in ASKED[:2]:
        answer(scheduler, prompt)
    events = answer(scheduler, ASKED[2], Sampling(temperature=0, max_tokens=1, prompt_logprobs=0))
    assert sum(len(event.prompt_scores) for event in events) == len(ASKED[2])
    assert events[-1].cached == 0


def test_another_beginning_is_not_taken_for_it(model: Model, tokenizer: Tokenizer) -> None:
    scheduler = schedule(model, tokenizer)
    for prompt in ASKED[:2]:
        answer(scheduler, prompt)
    other = [*ASKED[2]]
    other[100] += 1  # in the third chunk
    assert answer(scheduler, other)[-1].cached == 0  # what is kept ends behind it
    assert told(answer(schedule(model, tokenizer), other)) == told(answer(scheduler, other))


def test_the_whole_prompt_again_leaves_a_token_to_read(model: Model, tokenizer: Tokenizer) -> None:
    scheduler, prompt = schedule(model, tokenizer), SHARED[:120]
    found = [answer(scheduler, prompt) for _ in range(3)]
    assert told(found[0]) == told(found[1]) == told(found[2])
    assert [events[-1].cached for events in found] == [0, 0, 80]


def test_bytes_are_bounded(model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(model, 2, CONTEXT)
    size = runner.saved_bytes(120)
    assert size == sum(part.numel() * part.element_size() for part in _saved(runner, 120).parts)
    scheduler = Scheduler(runner, tokenizer)
    scheduler._prefixes = prefixes.Prefixes(runner, most_bytes=2 * size)
    for seed in range(4):
        shared = random_tokens(130, seed=seed, vocabulary=263)
        for _ in range(3):
            answer(scheduler, shared, Sampling(temperature=0, max_tokens=1))
        assert len(runner._saved) == min(seed + 1, 2)
    assert scheduler.totals.cached == 4 * 120


def test_nothing_is_kept_where_the_device_is_full(
    model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "has_room", lambda runner, size: False)
    scheduler = schedule(model, tokenizer)
    for prompt in ASKED:
        answer(scheduler, prompt, Sampling(temperature=0, max_tokens=1))
    assert (scheduler.runner._saved, scheduler.totals.cached) == ({}, 0)


def _saved(runner: Runner, length: int) -> SavedRow:
    runner._cache.lengths[0] = length
    return runner._cache.save(0)


def test_planted_row_that_remembers_nothing_is_seen(
    model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(cache: Cache, row: int, saved: SavedRow) -> None:
        cache.lengths[row] = saved.length

    expected = told(answer(schedule(model, tokenizer), ASKED[2]))
    monkeypatch.setattr(Cache, "load", load)
    scheduler = schedule(model, tokenizer)
    beside = scheduler.submit(random_tokens(200, seed=77), Sampling(temperature=0, max_tokens=1))
    assert [answer(scheduler, prompt) for prompt in ASKED[:2]]
    assert beside == 1
    assert told(answer(scheduler, ASKED[2])) != expected


def texts_on_ranks(release: Path, folder: Path) -> Any:
    model = engine.load(release, "bf16", torch.float32, mtp=True, chunk=CHUNK)
    scheduler = schedule(model, Tokenizer(folder), speculate=True)
    if not model.groups.is_leader:
        scheduler.runner.follow()
        return None
    found = [answer(scheduler, prompt) for prompt in ASKED]
    scheduler.runner.stop()
    return [("".join(event.text for event in events), events[-1].cached) for events in found]


@pytest.mark.slow
def test_two_ranks_keep_what_one_keeps(quick_release: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    found = on_ranks(2, texts_on_ranks, quick_release, tmp_path)
    assert found == texts_on_ranks(quick_release, tmp_path)
    assert [cached for _, cached in found] == [0, 0, 120]
