"""The device runs a step ahead of the host: a sequence gets, event by event, what a scheduler that waits gives it."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_checkpoint import random_tokens
from ranks import on_ranks
from small_tokenizer import write_tokenizer

from flagrelease import engine
from flagrelease.engine.batch import runner as runner_module
from flagrelease.engine.batch.orders import Next
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler, generate_all
from flagrelease.engine.batch.sequence import Event
from flagrelease.engine.decode.stepper import CapturedStepper
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model

CONTEXT, EOS, FAVOUR = 80, 1, 7.0
# float32, logits of about 10: a different order of additions only.
LIMIT = 1e-3


class Waiting(Scheduler):
    """A step takes in its own tokens before anything else is queued."""

    def step(self) -> list[Event]:
        if self.runner.speculate:
            return super().step()
        events = self._read_prompts() + self._take_in()
        going = [each for each in self._active.values() if each.ready]
        if going:
            logits = self.runner.run(Next(tuple(each.row for each in going)))
            self._continue(going, logits[[each.row for each in going], 0])
        return events + self._take_in()


@pytest.fixture(scope="module")
def model(quick_release: Path) -> Model:
    return engine.load(quick_release, "bf16", torch.float32, mtp=True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


@dataclass
class Story:
    """What happens, step by step: who comes, who is cancelled after how many of its events."""

    arrivals: dict[int, list[tuple[list[int], Sampling]]]
    cancelled: dict[int, int]
    rows: int
    budget: int
    speculate: bool


def draw_story(seed: int) -> Story:
    chance = random.Random(seed)
    arrivals: dict[int, list[tuple[list[int], Sampling]]] = {}
    for _ in range(10):
        limit = chance.randint(0, 16)
        sampling = Sampling(
            temperature=chance.choice([0, 0.7, 1.0, 1.5]),
            top_p=chance.choice([1.0, 0.8]),
            top_k=chance.choice([0, 0, 9]),
            min_p=chance.choice([0.0, 0.0, 0.05]),
            seed=chance.randrange(1000),
            max_tokens=limit,
            min_tokens=chance.choice([0, 0, min(limit, 4)]),
            ignore_eos=chance.random() < 0.2,
            stop=chance.choice([(), (), ("a",), ("\x10", "é"), ("e", "t", "o")]),
            logprobs=chance.choice([None, None, 0, 2, 3]),
            echo=chance.random() < 0.2,
            logit_bias=((EOS, FAVOUR),) if chance.random() < 0.6 else (),
        )
        prompt = random_tokens(chance.choice([1, 2, 5, 17, 60]), seed=chance.randrange(1000), vocabulary=263)
        arrivals.setdefault(chance.choice([0, 0, chance.randrange(15)]), []).append((prompt, sampling))
    cancelled = {key: chance.randrange(6) for key in chance.sample(range(1, 11), 2)}
    return Story(arrivals, cancelled, chance.randint(1, 6), chance.choice([5, 16, 300]), speculate=seed % 4 == 3)


def told(story: Story, scheduler: Scheduler) -> dict[int, list[Event]]:
    """The events of each sequence; those of a cancelled one up to when it is."""
    events: dict[int, list[Event]] = {}
    waiting = dict(story.arrivals)
    step = 0
    while waiting or scheduler.busy:
        for request in waiting.pop(step, []):
            events[scheduler.submit(*request)] = []
        gone = {key for key, last in story.cancelled.items() if len(events.get(key, [])) > last}
        for event in scheduler.step():
            assert event.key not in gone, "who was cancelled is told nothing"
            events[event.key].append(event)
        for key in story.cancelled.keys() & events.keys():
            if len(events[key]) > story.cancelled[key] and key not in gone:
                del events[key][story.cancelled[key] + 1 :]  # a step may tell two
                scheduler.cancel(key)
        step += 1
    return events


def schedulers(story: Story, model: Model, tokenizer: Tokenizer) -> list[Scheduler]:
    return [
        kind(Runner(model, story.rows, CONTEXT, speculate=story.speculate), tokenizer, story.budget)
        for kind in (Waiting, Scheduler)
    ]


def assert_same(one: list[Event], other: list[Event]) -> None:
    told = [[(event.text, event.generated, event.finish) for event in events] for events in (one, other)]
    assert told[0] == told[1]
    for a, b in zip(one, other, strict=True):
        assert [score.token for score in a.scores] == [score.token for score in b.scores]
        for x, y in zip(a.scores, b.scores, strict=True):
            assert x.logprob == pytest.approx(y.logprob, abs=LIMIT)
            assert [token for token, _ in x.top] == [token for token, _ in y.top]


@pytest.mark.parametrize("seed", range(4))
def test_events_are_those_of_a_scheduler_that_waits(model: Model, tokenizer: Tokenizer, seed: int) -> None:
    story = draw_story(seed)
    waiting, ahead = (told(story, scheduler) for scheduler in schedulers(story, model, tokenizer))
    assert waiting.keys() == ahead.keys()
    for key, events in waiting.items():
        assert_same(events, ahead[key])
    ends = [events[-1].finish for events in ahead.values() if events]
    assert min(ends.count("stop"), ends.count("length")) > 1  # otherwise the story shows little


def test_static_steps_take_the_tokens_that_the_device_has(
    model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = draw_story(1)
    plain, _ = schedulers(story, model, tokenizer)
    monkeypatch.setattr(runner_module, "choose_stepper", CapturedStepper)
    _, static = schedulers(story, model, tokenizer)
    expected = told(story, plain)
    for key, events in told(story, static).items():
        assert_same(expected[key], events)


def test_planted_tokens_that_are_not_kept_are_seen(
    model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = draw_story(0)
    right, ahead = schedulers(story, model, tokenizer)
    expected = told(story, right)
    monkeypatch.setattr(Runner, "keep", lambda runner, rows, tokens: None)
    stale = told(story, ahead)
    assert [event.text for key in expected for event in expected[key]] != [
        event.text for key in expected for event in stale[key]
    ]


class Recorder(Runner):
    """A runner that keeps the rows of its steps."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.steps: list[tuple[int, ...]] = []

    def run(self, order: Any) -> torch.Tensor:
        if isinstance(order, Next):
            self.steps.append(order.rows)
        return super().run(order)


def test_a_step_is_queued_before_the_tokens_of_the_last_one_are_known(model: Model, tokenizer: Tokenizer) -> None:
    runner = Recorder(model, 1, CONTEXT)
    scheduler = Scheduler(runner, tokenizer)
    scheduler.submit([5, 6], Sampling(temperature=0, max_tokens=5))
    generated = []
    while scheduler.busy:
        generated += [event.generated for event in scheduler.step()]
        # known: all but the newest; its successor is not queued where the limit is reached
        assert len(runner.steps) == min(len(generated), 4)
    assert generated == [1, 2, 3, 4, 5]


def test_the_last_token_by_limit_is_no_wasted_row(model: Model, tokenizer: Tokenizer) -> None:
    # A row more would pass the context, which the cache refuses.
    runner = Recorder(model, 1, 12)
    (result,) = generate_all(Scheduler(runner, tokenizer), [[5] * 4], Sampling(temperature=0, max_tokens=8))
    assert (result.generated, len(runner.steps)) == (8, 7)


def test_an_end_by_text_wastes_one_row(model: Model, tokenizer: Tokenizer) -> None:
    free = generate_all(Scheduler(Runner(model, 1, CONTEXT), tokenizer), [[5] * 4], Sampling(seed=2, max_tokens=40))[0]
    runner = Recorder(model, 1, CONTEXT)
    how = Sampling(seed=2, max_tokens=40, stop=(free.text[6:8],))
    (result,) = generate_all(Scheduler(runner, tokenizer), [[5] * 4], how)
    assert result.text == free.text[: free.text.index(free.text[6:8])]
    assert len(runner.steps) == result.generated  # the first token is the prompt's, the last step is wasted


def texts_on_ranks(release: Path, folder: Path) -> Any:
    model = engine.load(release, "bf16", torch.float32)
    scheduler = Scheduler(Runner(model, 3, CONTEXT), Tokenizer(folder), budget=16)
    if not model.groups.is_leader:
        scheduler.runner.follow()
        return None
    story = draw_story(1)
    events = told(story, scheduler)
    scheduler.runner.stop()
    return {key: "".join(event.text for event in each) for key, each in events.items()}


@pytest.mark.slow
def test_two_ranks_follow_tokens_that_only_the_device_knows(
    quick_release: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path)
    assert on_ranks(2, texts_on_ranks, quick_release, tmp_path) == texts_on_ranks(quick_release, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(4))
def test_events_on_the_device_are_those_of_a_scheduler_that_waits(
    quick_release: Path, tokenizer: Tokenizer, seed: int
) -> None:
    story = draw_story(seed)
    model = engine.load(quick_release, "bf16", torch.float32, "auto", mtp=True)
    waiting, ahead = (told(story, scheduler) for scheduler in schedulers(story, model, tokenizer))
    for key, events in waiting.items():
        assert_same(events, ahead[key])


@pytest.mark.gpu
def test_a_thread_serves_what_the_main_thread_does(quick_release: Path, tokenizer: Tokenizer) -> None:
    story = draw_story(2)
    model = engine.load(quick_release, "bf16", torch.float32, "auto", mtp=True)
    _, scheduler = schedulers(story, model, tokenizer)
    _, other = schedulers(story, model, tokenizer)
    expected = told(story, scheduler)
    with ThreadPoolExecutor(1) as thread:
        for key, events in thread.submit(told, story, other).result(timeout=300).items():
            assert_same(expected[key], events)
