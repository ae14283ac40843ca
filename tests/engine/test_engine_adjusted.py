"""Penalties, bias and bans against transformers and formulas, alone and in sequences with and without drafts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_checkpoint import random_tokens
from small_tokenizer import write_tokenizer
from transformers import RepetitionPenaltyLogitsProcessor

from flagrelease import engine
from flagrelease.engine.batch.adjusted import Adjuster, adjusted, pack
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler, generate_all
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model
from flagrelease.errors import UsageError

SIZE, EOS = 263, 1  # no multiple of 32: the last word of a mask is not full
PROMPT = random_tokens(20, vocabulary=SIZE)
REPEATED = {"frequency_penalty": 0.7, "presence_penalty": -0.4, "repetition_penalty": 1.3}
KINDS: list[dict[str, Any]] = [
    {"frequency_penalty": 1.5},
    {"presence_penalty": 2.0},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    REPEATED,
    {**REPEATED, "logit_bias": ((5, 3.0), (9, -100.0)), "min_tokens": 3},
    {"allowed_token_ids": (7, 8, 9, 40, 262)},
    {**REPEATED, "allowed_token_ids": tuple(range(30, 60)), "bad_words": ((40,), (41, 42))},
]


def by_formula(logits: np.ndarray, prompt: list[int], answer: list[int], how: Sampling) -> np.ndarray:
    """One row, token by token, as OpenAI's and vLLM's documents state it."""
    row = logits.astype(np.float64).copy()
    for token, value in how.logit_bias:
        row[token] += value
    times = Counter(answer)
    for token in range(len(row)):
        if token in times or token in prompt:
            row[token] = row[token] / how.repetition_penalty if row[token] > 0 else row[token] * how.repetition_penalty
        row[token] -= how.frequency_penalty * times[token] + how.presence_penalty * (times[token] > 0)
    if how.allowed_token_ids is not None:
        row[[token for token in range(len(row)) if token not in how.allowed_token_ids]] = -np.inf
    for word in how.bad_words:
        if answer[len(answer) - len(word) + 1 :] == list(word[:-1]):
            row[word[-1]] = -np.inf
    if len(answer) < how.min_tokens:
        row[EOS] = -np.inf
    return row


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_rows_are_changed_by_the_formula(how: dict[str, Any]) -> None:
    sampling = Sampling(**how)
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(5, SIZE, generator=generator)
    answers: list[list[int]] = [[], [7], [7, 7, 40, 9], random_tokens(40, seed=3, vocabulary=SIZE), [5, 41]]
    aheads: list[list[int]] = [[], [7], [200], [40], [42]]
    places = []
    for answer, ahead in zip(answers, aheads, strict=True):
        adjuster = Adjuster(sampling, PROMPT, EOS, SIZE)
        for token in answer:
            adjuster.take(token)
        places.append((adjuster, tuple(ahead)))
    got = adjusted(logits, places).numpy()
    for n, (answer, ahead) in enumerate(zip(answers, aheads, strict=True)):
        expected = by_formula(logits[n].numpy(), PROMPT, answer + ahead, sampling)
        np.testing.assert_allclose(got[n], expected, rtol=1e-5, atol=1e-5)


def test_repetition_is_that_of_transformers() -> None:
    logits = torch.randn(1, SIZE, generator=torch.Generator().manual_seed(2))
    answer = random_tokens(9, seed=5, vocabulary=SIZE)
    adjuster = Adjuster(Sampling(repetition_penalty=1.4), PROMPT, EOS, SIZE)
    for token in answer:
        adjuster.take(token)
    expected = RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([PROMPT + answer]), logits)
    assert torch.equal(adjusted(logits, [(adjuster, ())]), expected)


def test_rows_that_ask_for_nothing_stay_as_they_are() -> None:
    logits = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(2))
    plain = Adjuster(Sampling(), PROMPT, EOS, SIZE)
    assert adjusted(logits, [(plain, ())] * 3) is logits
    before = logits.clone()
    asks = Adjuster(Sampling(allowed_token_ids=(3,)), PROMPT, EOS, SIZE)
    got = adjusted(logits, [(plain, ()), (asks, ()), (plain, ())])
    assert torch.equal(got[[0, 2]], before[[0, 2]])
    assert torch.equal(logits, before)  # log-probabilities are told from it
    assert (got[1] > -torch.inf).nonzero().flatten().tolist() == [3]


def test_bans_that_leave_nothing_do_not_hold() -> None:
    # only the end is allowed, and min_tokens rules it out: with both, every logit was -inf
    adjuster = Adjuster(Sampling(allowed_token_ids=(EOS,), min_tokens=5), PROMPT, EOS, SIZE)
    got = adjusted(torch.zeros(1, SIZE), [(adjuster, ())])
    assert (got[0] > -torch.inf).nonzero().flatten().tolist() == [EOS]


def test_bits_are_in_the_order_of_the_tokens() -> None:
    assert pack([0, 31, 32, 64], 65).tolist() == [-(2**31) + 1, 1, 1]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"frequency_penalty": 2.1}, "frequency_penalty 2.1"),
        ({"presence_penalty": -2.1}, "presence_penalty -2.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0"),
        ({"allowed_token_ids": ()}, "allowed_token_ids"),
        ({"bad_words": ((),)}, "bad_words"),
    ],
)
def test_values_without_meaning_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Sampling(**values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop_token_ids", (263,)),
        ("allowed_token_ids", (263,)),
        (
            "bad_words",
            ((5,), (5, 263)),
        ),  # was not looked at: the scheduler would have ended, for there is no such logit
        ("logit_bias", ((263, 1.0),)),
    ],
)
def test_tokens_that_the_model_lacks_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name}: a token id outside the vocabulary of 263"):
        Sampling(**{name: value}).check_tokens(SIZE)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def model(quick_release: Path) -> Model:
    return engine.load(quick_release, "bf16", torch.float32, mtp=True)


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_a_sequence_follows_the_formula_with_and_without_drafts(
    model: Model, tokenizer: Tokenizer, how: dict[str, Any]
) -> None:
    sampling = Sampling(0, max_tokens=24, logprobs=0, **how)
    expected: list[int] = []
    while len(expected) < 24 and EOS not in expected:
        logits = model.logits(PROMPT + expected)[-1].numpy()
        expected.append(int(by_formula(logits, PROMPT, expected, sampling).argmax()))
    for speculate in (False, True):
        scheduler = Scheduler(Runner(model, 2, 100, speculate=speculate), tokenizer)
        plain = Sampling(0, max_tokens=24)
        beside = scheduler.submit(PROMPT, plain)  # has no wishes
        scheduler.submit(PROMPT, sampling)
        tokens, drafted = list[int](), 0
        while scheduler.busy:
            for event in scheduler.step():
                if event.key != beside:
                    tokens += [score.token for score in event.scores]
                    drafted = event.acceptance.drafts
        assert tokens == expected
        assert (drafted > 0) == speculate


@pytest.mark.slow
def test_sampled_tokens_are_the_same_with_and_without_drafts(model: Model, tokenizer: Tokenizer) -> None:
    how = [Sampling(1.0, seed=3, max_tokens=30, logprobs=0, **each) for each in KINDS]
    answers = []
    for speculate in (False, True):
        scheduler = Scheduler(Runner(model, 3, 100, speculate=speculate), tokenizer)
        answers.append([generate_all(scheduler, [PROMPT], each)[0] for each in how])
    for one, other in zip(*answers, strict=True):
        assert [score.token for score in one.scores] == [score.token for score in other.scores]


def test_a_stop_token_ends_the_answer_without_text(model: Model, tokenizer: Tokenizer) -> None:
    scheduler = Scheduler(Runner(model, 1, 100, speculate=True), tokenizer)
    (free,) = generate_all(scheduler, [PROMPT], Sampling(0, max_tokens=20, logprobs=0))
    tokens = [score.token for score in free.scores]
    place = next(n for n in range(5, 20) if tokens[n] not in tokens[:n])
    (ended,) = generate_all(scheduler, [PROMPT], Sampling(0, max_tokens=20, stop_token_ids=(tokens[place],)))
    assert (ended.finish, ended.generated) == ("stop", place + 1)
    assert ended.text == tokenizer.decode(tokens[:place])
    (bound,) = generate_all(
        scheduler, [PROMPT], Sampling(0, max_tokens=20, logprobs=0, min_tokens=20, stop_token_ids=(tokens[place],))
    )
    assert tokens[place] not in [score.token for score in bound.scores[:19]]
