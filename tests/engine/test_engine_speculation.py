"""Speculation changes no token: greedy or sampled, beside whatever else, on any number of ranks; only their pace."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_checkpoint import random_tokens
from live_numbers import live
from ranks import on_ranks
from small_tokenizer import write_tokenizer
from torch import Tensor

from flagrelease import engine
from flagrelease.engine.batch import guessing
from flagrelease.engine.batch.guessing import Token
from flagrelease.engine.batch.orders import Draft, Prefill
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler, generate_all
from flagrelease.engine.batch.sequence import Running
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.dspark_head import Choose, Drafts
from flagrelease.engine.v4.model import Model
from flagrelease.errors import UsageError

CONTEXT = 300
SAID = range(40, 44)  # the only tokens that the model says: a random MTP stage then guesses right now and then
# float32; a different order of additions only.
LIMIT = 1e-3


def terse(release: Path) -> Model:
    """The random model; of the logits all but those of a few tokens are small."""
    model = engine.load(release, "bf16", torch.float32, mtp=True)
    head = model.head
    first = model.groups.rank * len(head)
    silent = torch.tensor([first + n not in SAID for n in range(len(head))])

    class Terse(Operators):
        @staticmethod
        def linear(x: Tensor, weight: Tensor, out_dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
            y = Operators.linear(x, weight, out_dtype, out)
            return y.masked_fill_(silent, -50) if weight is head else y

    return replace(model, ops=Terse())


@pytest.fixture(scope="module")
def model(bf16_release: Path) -> Model:
    return terse(bf16_release)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


def schedule(model: Model, tokenizer: Tokenizer, rows: int = 4, *, speculate: bool = True) -> Scheduler:
    return Scheduler(Runner(model, rows, CONTEXT, speculate=speculate), tokenizer)


PROMPTS = [random_tokens(n, seed=n, vocabulary=263) for n in (1, 3, 30, 64, 127, 129, 200)]
SAMPLINGS = [
    Sampling(temperature=0, max_tokens=40, logprobs=2),
    Sampling(temperature=1.0, seed=3, max_tokens=40),
    Sampling(temperature=0.6, top_p=0.7, seed=4, max_tokens=40),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "top-p"])
def test_the_same_text_with_drafts_and_without(model: Model, tokenizer: Tokenizer, sampling: Sampling) -> None:
    plain = generate_all(schedule(model, tokenizer, speculate=False), PROMPTS, sampling)
    scheduler = schedule(model, tokenizer)
    drafted = generate_all(scheduler, PROMPTS, sampling)
    for one, other in zip(plain, drafted, strict=True):
        assert (one.text, one.finish, one.generated) == (other.text, other.finish, other.generated)
        assert [score.token for score in one.scores] == [score.token for score in other.scores]
        for a, b in zip(one.scores, other.scores, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=LIMIT)
    # both ways a draft can end were taken many times
    assert sum(r.accepted for r in drafted) > 20
    assert sum(r.drafted - r.accepted for r in drafted) > 20
    assert scheduler.totals.drafted == sum(r.drafted for r in drafted)
    assert scheduler.totals.accepted == sum(r.accepted for r in drafted)


def assert_limit_holds(model: Model, tokenizer: Tokenizer, limit: int) -> None:
    """Of the answer to 30 tokens, which has room for 30."""
    how, prompt = Sampling(temperature=0, max_tokens=limit), random_tokens(30, seed=30, vocabulary=263)
    results = [
        generate_all(Scheduler(Runner(model, 1, 60, speculate=speculate), tokenizer), [prompt], how)[0]
        for speculate in (False, True)
    ]
    assert [result.generated for result in results] == [limit, limit]  # 30: the context is full to its last token
    assert results[0].text == results[1].text


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 30])
def test_limits_hold(model: Model, tokenizer: Tokenizer, limit: int) -> None:
    assert_limit_holds(model, tokenizer, limit)


def test_eos_and_stop_strings_end_in_the_middle_of_a_step(model: Model, tokenizer: Tokenizer) -> None:
    (free,) = generate_all(schedule(model, tokenizer), [PROMPTS[3]], SAMPLINGS[1])
    for first, length in itertools.product(range(10, 13), (1, 2)):
        how = Sampling(temperature=1.0, seed=3, max_tokens=60, stop=(free.text[first : first + length],))
        (plain,) = generate_all(schedule(model, tokenizer, speculate=False), [PROMPTS[3]], how)
        assert generate_all(schedule(model, tokenizer), [PROMPTS[3]], how)[0].text == plain.text
    config, ended = model.config, 0
    try:
        for eos in SAID:
            model.config = config.model_copy(update={"eos_token_id": eos})
            (plain,) = generate_all(schedule(model, tokenizer, speculate=False), [PROMPTS[3]], SAMPLINGS[1])
            (result,) = generate_all(schedule(model, tokenizer), [PROMPTS[3]], SAMPLINGS[1])
            assert (result.text, result.finish, result.generated) == (plain.text, plain.finish, plain.generated)
            ended += result.finish == "stop"
    finally:
        model.config = config
    assert ended > 1


def test_tokens_follow_the_models_distribution(model: Model, tokenizer: Tokenizer) -> None:
    # Independent of the plain path: the likeliest texts of three tokens, each with its probability by whole prefills.
    prompt, count, rare = PROMPTS[1], 160, 0.015
    how = Sampling(temperature=1.2, top_p=0.9, max_tokens=3)
    expected: dict[str, float] = {}

    def follow(text: list[int], p: float) -> None:
        if p < rare:
            return
        if len(text) == 3:
            expected[tokenizer.decode(text)] = p
            return
        after = (model.logits(prompt + text)[-1] / how.temperature).softmax(-1).numpy()
        order = np.argsort(-after)
        kept = order[: int(np.searchsorted(np.cumsum(after[order]), how.top_p)) + 1]
        for token in kept:
            follow([*text, int(token)], p * after[token] / after[kept].sum())

    follow([], 1.0)
    scheduler = Scheduler(Runner(model, 100, len(prompt) + 4, speculate=True), tokenizer)
    for seed in range(count):
        scheduler.submit(prompt, replace(how, seed=seed))
    texts: dict[int, str] = {}
    while scheduler.busy:
        for event in scheduler.step():
            texts[event.key] = texts.get(event.key, "") + event.text
    assert 0.1 < scheduler.totals.accepted / scheduler.totals.drafted < 0.9
    counted = [list(texts.values()).count(text) for text in expected]
    likelihoods = list(expected.values())
    counted.append(count - sum(counted))
    likelihoods.append(1 - sum(likelihoods))
    chi = sum((n - count * p) ** 2 / (count * p) for n, p in zip(counted, likelihoods, strict=True))
    assert len(expected) >= 5
    assert chi < len(expected) + 5 * (2 * len(expected)) ** 0.5  # 5 standard deviations


class Watched(Runner):
    """A runner that keeps its orders and their logits."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seen: list[tuple[Any, Tensor]] = []

    def run(self, order: Any) -> Tensor:
        logits = super().run(order)
        self.seen.append((order, logits))
        return logits

    def draft(self, order: Draft, choose: Choose) -> Drafts:
        drafts = super().draft(order, choose)
        self.seen.append((order, drafts.logits[:, 0]))
        return drafts


def test_drafts_are_those_of_the_whole_sequence(model: Model, tokenizer: Tokenizer) -> None:
    prompt = PROMPTS[4]
    runner = Watched(model, 2, CONTEXT, speculate=True)
    scheduler = Scheduler(runner, tokenizer, budget=20)
    scheduler.submit(prompt, SAMPLINGS[1])
    known = list(prompt)
    while scheduler.busy:
        scheduler.step()
        for order, logits in runner.seen:
            if isinstance(order, Draft):
                known += order.following[0]
                assert (logits[0] - model.draft_logits(known)[-1]).abs().max() <= LIMIT
        runner.seen.clear()
    assert len(known) > len(prompt) + 30


def differences(model: Model, draft_is_forgotten: Callable[[Cache], None]) -> float:
    """The largest difference that wrong drafts leave in what later tokens read, over windows of 4 and of 128."""
    tokens, first = random_tokens(142), 100
    plain, tried = model.new_cache(2, CONTEXT), model.new_cache(2, CONTEXT)
    for cache in (plain, tried):
        model.prefill(cache, 1, tokens[:first])
    worst = 0.0
    for n, token in enumerate(tokens[first:-1], first):
        model.decode(plain, [None, token])
        model.advance(tried, [(), (token, (tokens[n + 1] + 7) % 320)])
        draft_is_forgotten(tried)
        assert tried.lengths == plain.lengths
        pairs = zip(live(tried, 1, model), live(plain, 1, model), strict=True)
        worst = max([worst, *(float((a - b).abs().max()) for a, b in pairs if a.numel())])
    return worst


def test_a_rejected_draft_leaves_nothing_behind(model: Model) -> None:
    assert differences(model, lambda cache: cache.take_back(1)) <= LIMIT


def test_planted_three_tokens_taken_back_are_seen(model: Model) -> None:
    # What makes one draft the limit: a third token takes the slot of one that an incomplete window still needs.
    tokens = random_tokens(40)
    plain, tried = model.new_cache(1, CONTEXT), model.new_cache(1, CONTEXT)
    model.prefill(plain, 0, tokens[:39])
    model.prefill(tried, 0, tokens[:39])
    model.advance(tried, [(300, 301, 302)])
    tried.lengths[0] -= 3
    pairs = zip(live(tried, 0, model), live(plain, 0, model), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs if a.numel()) > 0.1


def texts_on_ranks(release: Path, folder: Path) -> Any:
    model = terse(release)
    scheduler = schedule(model, Tokenizer(folder), rows=2)
    if not model.groups.is_leader:
        scheduler.runner.follow()
        return None
    results = generate_all(scheduler, PROMPTS[:4], SAMPLINGS[1])
    scheduler.runner.stop()
    return [(result.text, result.drafted, result.accepted) for result in results]


def test_two_ranks_draft_as_one(bf16_release: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert on_ranks(2, texts_on_ranks, bf16_release, tmp_path) == texts_on_ranks(bf16_release, tmp_path)


def test_what_cannot_speculate_is_refused(bf16_release: Path) -> None:
    model = engine.load(bf16_release, "bf16", torch.float32)
    with pytest.raises(UsageError, match="without its MTP stage"):
        Runner(model, 1, 100, speculate=True)
    both = engine.load(bf16_release, "bf16", torch.float32, mtp=True, chunk=1)
    with pytest.raises(UsageError, match="must be at least 2"):
        Runner(both, 1, 100, speculate=True)


def test_a_prompt_is_read_by_the_stage_in_pieces(model: Model, tokenizer: Tokenizer) -> None:
    texts = []
    for budget in (9, 512):
        runner = Watched(model, 1, CONTEXT, speculate=True)
        scheduler = Scheduler(runner, tokenizer, budget=budget)
        (result,) = generate_all(scheduler, [PROMPTS[4]], SAMPLINGS[0])
        texts.append((result.text, result.drafted, result.accepted))
        assert sum(isinstance(order, Prefill) for order, _ in runner.seen) == -(-127 // budget)
    assert texts[0] == texts[1]


def test_planted_acceptance_of_every_draft_is_seen(
    model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plain,) = generate_all(schedule(model, tokenizer, speculate=False), [PROMPTS[3]], SAMPLINGS[1])

    def judge(each: Running, tokens: list[Token]) -> tuple[list[Token], None]:
        return [*((draft, None) for draft in each.drafts), tokens[-1]], None

    monkeypatch.setattr(guessing, "_judge", judge)
    (result,) = generate_all(schedule(model, tokenizer), [PROMPTS[3]], SAMPLINGS[1])
    assert result.text != plain.text
