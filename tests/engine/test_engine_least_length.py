"""`min_tokens`, `ignore_eos`, `logit_bias`: a model that would end at once goes on, with and without drafts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_checkpoint import random_tokens
from small_tokenizer import write_tokenizer

from flagrelease import engine
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler, generate_all
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model

PROMPT = random_tokens(20, vocabulary=263)
BESIDE = random_tokens(9, vocabulary=263)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def model(quick_release: Path) -> Model:
    """Its end token is the one that it likes best after the prompt."""
    model = engine.load(quick_release, "bf16", torch.float32, mtp=True)
    first = int(model.logits(PROMPT)[-1].argmax())
    model.config = model.config.model_copy(update={"eos_token_id": first})
    return model


@pytest.fixture(params=[False, True])
def scheduler(model: Model, tokenizer: Tokenizer, request: pytest.FixtureRequest) -> Scheduler:
    return Scheduler(Runner(model, 2, 100, speculate=request.param), tokenizer)


def by_hand(model: Model, prompt: list[int], count: int, least: int) -> list[int]:
    """Greedy tokens, one prefill each; the end token is out of the question for the first `least`."""
    tokens: list[int] = []
    for n in range(count):
        logits = model.logits([*prompt, *tokens])[-1].clone()
        if n < least:
            logits[model.config.eos_token_id] = -torch.inf
        tokens.append(int(logits.argmax()))
        if tokens[-1] == model.config.eos_token_id:
            break
    return tokens


def test_an_answer_does_not_end_before_its_least_length(model: Model, scheduler: Scheduler) -> None:
    end = model.config.eos_token_id
    (plain,) = generate_all(scheduler, [PROMPT], Sampling(0, max_tokens=8))
    assert (plain.generated, plain.finish) == (1, "stop")
    (bound,) = generate_all(scheduler, [PROMPT], Sampling(0, max_tokens=8, min_tokens=5, logprobs=0))
    expected = by_hand(model, PROMPT, 8, 5)
    assert [score.token for score in bound.scores] == expected
    assert end not in expected[:5]


def test_a_neighbour_is_not_bound(model: Model, scheduler: Scheduler) -> None:
    keys = {
        scheduler.submit(PROMPT, Sampling(0, max_tokens=8, min_tokens=8)): 8,
        scheduler.submit(PROMPT, Sampling(0, max_tokens=8)): 1,
        scheduler.submit(BESIDE, Sampling(0, max_tokens=8)): len(by_hand(model, BESIDE, 8, 0)),
    }
    counts = {}
    while scheduler.busy:
        counts |= {event.key: event.generated for event in scheduler.step() if event.finish}
    assert counts == keys


def test_the_end_token_can_be_passed_over(model: Model, scheduler: Scheduler) -> None:
    (answer,) = generate_all(scheduler, [PROMPT], Sampling(0, max_tokens=6, ignore_eos=True, logprobs=0))
    assert (answer.generated, answer.finish) == (6, "length")
    tokens = [score.token for score in answer.scores]
    assert tokens[0] == model.config.eos_token_id
    assert answer.text == scheduler.tokenizer.decode([t for t in tokens if t != model.config.eos_token_id])


def test_a_stop_string_waits_for_the_least_length(model: Model, scheduler: Scheduler) -> None:
    (free,) = generate_all(scheduler, [PROMPT], Sampling(0, max_tokens=12, ignore_eos=True))
    stop = free.text[0]
    (early,) = generate_all(scheduler, [PROMPT], Sampling(0, max_tokens=12, ignore_eos=True, stop=(stop,)))
    (late,) = generate_all(
        scheduler, [PROMPT], Sampling(0, max_tokens=12, min_tokens=12, ignore_eos=True, stop=(stop,))
    )
    assert early.text == ""
    assert late.generated == 12


def test_a_bias_is_added_before_a_token_is_chosen(model: Model, scheduler: Scheduler) -> None:
    end, wanted = model.config.eos_token_id, 77
    biases = {"banned": ((end, -100.0),), "forced": ((wanted, 100.0), (end, -100.0))}
    found = {}
    for name, bias in biases.items():
        (answer,) = generate_all(scheduler, [PROMPT], Sampling(0, max_tokens=5, logit_bias=bias, logprobs=0))
        found[name] = answer.scores
    assert [score.token for score in found["banned"]] == by_hand(model, PROMPT, 5, 5)
    assert [score.token for score in found["forced"]] == [wanted] * 5
    logp = model.logits(PROMPT)[-1].log_softmax(-1)
    assert found["forced"][0].logprob == pytest.approx(float(logp[wanted]), abs=1e-3)  # told without the bias
