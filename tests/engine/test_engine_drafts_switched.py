"""Drafting that begins and pauses in the middle of answers changes no token, and the stages miss no position."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_engine_dspark_speculation as of_dspark
import test_engine_speculation as of_preview
import torch
from dspark_small import CONTEXT as FEATURES_CONTEXT
from engine_checkpoint import Checkpoint, random_tokens
from ranks import on_ranks
from small_tokenizer import write_tokenizer
from test_engine_overlap import CONTEXT as STORY_CONTEXT
from test_engine_overlap import Story, draw_story
from torch import Tensor

from flagrelease import engine
from flagrelease.engine.batch import guessing
from flagrelease.engine.batch import runner as runner_module
from flagrelease.engine.batch.acceptance import Acceptance
from flagrelease.engine.batch.guessing import SURVIVAL, worth_verifying
from flagrelease.engine.batch.orders import Draft, Next
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler, generate_all
from flagrelease.engine.batch.sequence import Generated
from flagrelease.engine.batch.worth import Worth
from flagrelease.engine.decode.stepper import CapturedStepper, PlainStepper
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.drafting import open_drafting
from flagrelease.engine.v4.dspark_head import Choose, Drafts
from flagrelease.engine.v4.model import Model
from flagrelease.errors import UsageError

CONTEXT, LIMIT = 300, 1e-3
PROMPTS = [random_tokens(n, seed=n, vocabulary=263) for n in (1, 30, 123)]
SAMPLED = Sampling(temperature=1.0, seed=3, max_tokens=18)


class Switched(Worth):
    """Says yes and no as it is told, again and again."""

    def __init__(self, wanted: Sequence[bool]) -> None:
        super().__init__()
        self._wanted = itertools.cycle(wanted)
        self.drafting: list[bool] = []

    def wants(self, rows: int) -> bool:
        return next(self._wanted)

    def note(self, rows: int, counted: Acceptance, *, drafting: bool, calm: bool) -> None:
        self.drafting.append(drafting)


def at_random(seed: int) -> list[bool]:
    chance = random.Random(seed)
    return [wanted for _ in range(40) for wanted in [chance.random() < 0.5] * chance.randint(1, 4)]


PATTERNS = {
    "long pauses": [True] * 3 + [False] * 4,
    "at random": at_random(1),
}


@pytest.fixture(scope="module", params=["preview", "dspark"])
def model(request: pytest.FixtureRequest, bf16_release: Path, dspark: tuple[Checkpoint, Path]) -> Model:
    return of_preview.terse(bf16_release) if request.param == "preview" else of_dspark.terse(dspark[1])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def plain(model: Model, tokenizer: Tokenizer) -> list[str]:
    """The texts without drafts, of as many rows as the tests have."""
    return texts(generate_all(Scheduler(Runner(model, 2, CONTEXT), tokenizer), PROMPTS, SAMPLED))


def texts(results: Sequence[Generated]) -> list[str]:
    return [result.text for result in results]


def switched(model: Model, tokenizer: Tokenizer, wanted: Sequence[bool], budget: int = 40) -> tuple[Any, Switched]:
    worth = Switched(wanted)
    scheduler = Scheduler(Runner(model, 2, CONTEXT, speculate=True), tokenizer, budget, worth)
    results = generate_all(scheduler, PROMPTS, SAMPLED)
    assert scheduler.totals.accepted > 0
    return results, worth


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_same_text_however_drafts_come_and_go(
    model: Model, tokenizer: Tokenizer, plain: list[str], pattern: str
) -> None:
    results, worth = switched(model, tokenizer, PATTERNS[pattern])
    assert texts(results) == plain
    assert sum(a != b for a, b in itertools.pairwise(worth.drafting)) > 4


class Watched(Runner):
    """Keeps what was drafted for row 0, and how many steps had no drafts."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.known: list[int] = []
        self.made: list[tuple[list[int], Tensor]] = []
        self.ahead = 0
        self.orders = list[Draft]()

    def run(self, order: Any) -> Tensor:
        if isinstance(order, Next):
            self.known.append(int(self._latest[0]))
            self.ahead += 1
        return super().run(order)

    def draft(self, order: Draft, choose: Choose) -> Drafts:
        drafts = super().draft(order, choose)
        self.known += order.following[0]
        self.orders.append(order)
        self.made.append((list(self.known), drafts.logits[0, 0].clone()))
        return drafts


def worst_draft(model: Model, tokenizer: Tokenizer) -> float:
    """The largest difference from drafts of the whole sequence, of stages that read on while drafts paused."""
    runner, prompt = Watched(model, 2, CONTEXT, speculate=True), PROMPTS[2]
    scheduler = Scheduler(runner, tokenizer, 40, Switched([True] * 2 + [False] * 5))
    scheduler.submit(prompt, SAMPLED)
    while scheduler.busy:
        scheduler.step()
    assert runner.ahead > 5
    assert len(runner.made) > 3
    worst = 0.0
    for behind, logits in runner.made:
        tokens = prompt + behind
        _, features = model.advance_watched(model.new_cache(1, FEATURES_CONTEXT), [tokens[:-1]])
        drafting = open_drafting(model, 1, FEATURES_CONTEXT)
        expected = drafting.draft(features, [tokens[1:]], lambda _, logits: logits.argmax(-1))
        worst = max(worst, float((logits - expected.logits[0, 0]).abs().max()))
    return worst


def test_the_stages_read_on_while_drafts_pause(model: Model, tokenizer: Tokenizer) -> None:
    assert worst_draft(model, tokenizer) <= LIMIT


def test_planted_stages_that_rest_while_drafts_pause_are_seen(
    model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(self: PlainStepper, latest: Tensor, rows: Sequence[int]) -> Tensor:
        tokens, going = latest.tolist(), set(rows)
        return self.advance([[token] if row in going else [] for row, token in enumerate(tokens)])

    monkeypatch.setattr(PlainStepper, "follow", follow)
    assert worst_draft(model, tokenizer) > 0.01


def test_captured_steps(model: Model, tokenizer: Tokenizer, plain: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "choose_stepper", CapturedStepper)
    assert texts(switched(model, tokenizer, PATTERNS["at random"])[0]) == plain


def test_captured_stages_read_on_too(model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "choose_stepper", CapturedStepper)
    assert worst_draft(model, tokenizer) <= LIMIT


def test_greedy_drafts_need_no_choice(model: Model, tokenizer: Tokenizer) -> None:
    """Nobody asks the host for the likeliest tokens, unless a wish of the sequence changes the logits."""
    greedy, orders = Sampling(temperature=0, max_tokens=9), []
    for how in (greedy, replace(greedy, frequency_penalty=0.5), replace(greedy, temperature=1.0, seed=1)):
        (expected,) = generate_all(Scheduler(Runner(model, 1, CONTEXT), tokenizer), [PROMPTS[1]], how)
        runner = Watched(model, 1, CONTEXT, speculate=True)
        (result,) = generate_all(Scheduler(runner, tokenizer), [PROMPTS[1]], how)
        assert result.text == expected.text
        orders.append({order.likeliest for order in runner.orders})
    assert orders == [{True}, {False}, {False}]


def test_beginnings_that_are_kept(model: Model, tokenizer: Tokenizer) -> None:
    small, how = replace(model, chunk=16), replace(SAMPLED, max_tokens=6)
    prompts = [PROMPTS[2][:36] + random_tokens(n, seed=n, vocabulary=263) for n in (9, 10, 11)]
    expected = texts(generate_all(Scheduler(Runner(small, 1, CONTEXT), tokenizer), prompts, how))
    scheduler = Scheduler(Runner(small, 1, CONTEXT, speculate=True), tokenizer, 9, Switched(at_random(2)))
    assert texts(generate_all(scheduler, prompts, how)) == expected
    assert scheduler.totals.cached > 0


@pytest.mark.parametrize("limit", [0, 2, 30])
def test_limits_hold(model: Model, tokenizer: Tokenizer, limit: int) -> None:
    """A prompt of 30 tokens in a context of 60: at 30 the rows of model and stages are full to their ends."""
    how = replace(SAMPLED, max_tokens=limit)
    (expected,) = generate_all(Scheduler(Runner(model, 1, 60), tokenizer), [PROMPTS[1]], how)
    scheduler = Scheduler(Runner(model, 1, 60, speculate=True), tokenizer, None, Switched(PATTERNS["at random"]))
    (result,) = generate_all(scheduler, [PROMPTS[1]], how)
    assert (result.text, result.generated) == (expected.text, limit)


def ends(scheduler: Scheduler, story: Story) -> dict[int, tuple[str, str | None, int]]:
    """Text, reason and length of every answer that nobody gave up; the others are given up after their first event."""
    said, ended, step = dict[int, str](), dict[int, tuple[str, str | None, int]](), 0
    arrivals = dict(story.arrivals)
    while arrivals or scheduler.busy:
        for request in arrivals.pop(step, []):
            said[scheduler.submit(*request)] = ""
        for event in scheduler.step():
            said[event.key] += event.text
            if event.key in story.cancelled:
                scheduler.cancel(event.key)
            elif event.finish:
                ended[event.key] = said[event.key], event.finish, event.generated
        step += 1
    return ended


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_random_stories(model: Model, tokenizer: Tokenizer, seed: int) -> None:
    """Requests come, wait, end by stop strings and are cancelled, in the middle of steps of both kinds."""
    story = draw_story(seed)
    plain = Scheduler(Runner(model, story.rows, STORY_CONTEXT), tokenizer, story.budget)
    runner = Runner(model, story.rows, STORY_CONTEXT, speculate=True)
    switched = Scheduler(runner, tokenizer, story.budget, Switched(at_random(seed)))
    assert ends(switched, story) == ends(plain, story)


def texts_on_ranks(release: Path, folder: Path) -> list[str] | None:
    model = of_dspark.terse(release)
    runner = Runner(model, 2, CONTEXT, speculate=True)
    if not model.groups.is_leader:
        runner.follow()
        return None
    results = generate_all(Scheduler(runner, Tokenizer(folder), 40, Switched(at_random(3))), PROMPTS, SAMPLED)
    runner.stop()
    return texts(results)


@pytest.mark.slow
def test_two_ranks_say_what_one_does(dspark: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    alone = texts_on_ranks(dspark[1], tmp_path)
    assert on_ranks(2, texts_on_ranks, dspark[1], tmp_path) == alone
    plain = Scheduler(Runner(of_dspark.terse(dspark[1]), 2, CONTEXT), Tokenizer(tmp_path))
    assert alone == texts(generate_all(plain, PROMPTS, SAMPLED))


# Fewer drafts than the stages make, and drafts that are not worth it.


@pytest.mark.parametrize("most", [1, 3])
def test_the_same_text_with_at_most_so_many_drafts(
    dspark: tuple[Checkpoint, Path], tokenizer: Tokenizer, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guessing, "SURVIVAL", 0.0)
    model = of_dspark.terse(dspark[1])
    (expected,) = generate_all(Scheduler(Runner(model, 1, CONTEXT), tokenizer), [PROMPTS[2]], SAMPLED)
    scheduler = Scheduler(Runner(model, 1, CONTEXT, speculate=True, most=most), tokenizer)
    (result,) = generate_all(scheduler, [PROMPTS[2]], SAMPLED)
    assert result.text == expected.text
    assert len(result.acceptance.verified) == most


def test_more_drafts_than_the_stages_make_are_refused(model: Model) -> None:
    made = model.config.most_drafts
    with pytest.raises(UsageError, match=rf"--speculate {made + 1}: the draft stages .* at most {made} token"):
        Runner(model, 1, 100, speculate=True, most=made + 1)


def test_drafts_stop_from_left_to_right() -> None:
    assert worth_verifying([0.9, 0.9, 0.9, 0.9, 0.9]) == 5
    assert worth_verifying([SURVIVAL / 2, 1.0, 1.0]) == 0
    # a sure draft behind an unsure one is right only if that one is: others verify it, and lose the distribution
    assert worth_verifying([0.9, SURVIVAL / 2, 1.0, 1.0, 1.0]) == 1
    # no single one is below the limit, but all of them together are not likely
    assert worth_verifying([0.6, 0.6, 0.6, 0.6, 0.6]) == 2
    assert worth_verifying([SURVIVAL]) == 1


class Confident(Runner):
    """Its stages give the confidence that is wanted, row by row in turn."""

    def draft(self, order: Draft, choose: Choose) -> Drafts:
        drafts = super().draft(order, choose)
        rows = torch.arange(drafts.tokens.shape[0])[:, None] + len(order.following) * self.count
        self.count += 1
        place = torch.arange(drafts.tokens.shape[1])[None]
        stop = (rows * 7 + 3) % (drafts.tokens.shape[1] + 1)  # 0: nothing is verified
        return replace(drafts, confidence=torch.where(place < stop, 1.0, 0.0))

    count = 0


def test_the_same_text_wherever_confidence_stops(model: Model, tokenizer: Tokenizer, plain: list[str]) -> None:
    scheduler = Scheduler(Confident(model, 2, CONTEXT, speculate=True), tokenizer)
    assert texts(generate_all(scheduler, PROMPTS, SAMPLED)) == plain
    seen = scheduler.totals.acceptance
    assert 0 < seen.drafts < seen.verifications * model.config.most_drafts
    assert all(late <= early for early, late in itertools.pairwise(seen.verified))


def test_confidence_of_the_stages_is_used(
    dspark: tuple[Checkpoint, Path], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit that no random stage reaches nothing is verified; with none everything is."""
    model, counted = of_dspark.terse(dspark[1]), []
    for limit in (0.0, 1.1):
        monkeypatch.setattr(guessing, "SURVIVAL", limit)
        scheduler = Scheduler(Runner(model, 1, CONTEXT, speculate=True), tokenizer)
        generate_all(scheduler, [PROMPTS[1]], SAMPLED)
        counted.append(scheduler.totals.acceptance)
    assert counted[0].verified[0] == counted[0].verifications
    assert counted[1] == Acceptance(SAMPLED.max_tokens - 2)  # type: ignore[operator]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["preview", "dspark"])
def test_on_the_device(bf16_release: Path, dspark: tuple[Checkpoint, Path], tokenizer: Tokenizer, kind: str) -> None:
    folder = bf16_release if kind == "preview" else dspark[1]
    model = engine.load(folder, "bf16", torch.float32, "auto", mtp=True)
    expected = texts(generate_all(Scheduler(Runner(model, 2, CONTEXT), tokenizer), PROMPTS, SAMPLED))
    for wanted in PATTERNS.values():
        scheduler = Scheduler(Runner(model, 2, CONTEXT, speculate=True), tokenizer, 40, Switched(wanted))
        assert texts(generate_all(scheduler, PROMPTS, SAMPLED)) == expected
