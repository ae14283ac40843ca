"""Speculation samples from the model's own distribution: chi-square over many seeds, on chains of known chances.

The model is a Markov chain and so are its drafts, of other chances. So the chance of every text is a product of a few
numbers, which this file works out in float64 with filters of its own, and a step costs microseconds.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from small_tokenizer import write_tokenizer
from torch import Tensor

from flagrelease.device import Device
from flagrelease.engine.batch import guessing
from flagrelease.engine.batch.acceptance import Acceptance
from flagrelease.engine.batch.guessing import Token
from flagrelease.engine.batch.orders import Decode, Draft, Next, Prefill, Together
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.batch.sequence import Running
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.sampling import Choice, Sampler, Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.dspark_head import Choose, Drafts

VOCABULARY, FIRST, SAID = 263, 70, 6  # the chain says tokens FIRST .. FIRST + SAID - 1
LENGTH, BLOCK, ROWS = 5, 5, 250
SEEDS = 3000
PROMPT = [FIRST + 2]
SAMPLINGS = {
    "plain": Sampling(temperature=1.0),
    "hot": Sampling(temperature=1.7),
    "top-p": Sampling(temperature=1.2, top_p=0.8),
    "min-p": Sampling(temperature=1.2, min_p=0.12),
    "top-p and min-p": Sampling(temperature=1.4, top_p=0.85, min_p=0.08),
    "top-k": Sampling(temperature=1.3, top_k=4),
}
SURE, ALARM = 1e-4, 1e-9  # p-values: of what is right (the seeds are fixed), and of a planted defect
Table = NDArray[np.float64]


def tables() -> tuple[Table, Table]:
    """Logits [SAID, SAID] of the token after each, of the model and of its drafts."""
    rng = np.random.default_rng(17)
    model = rng.normal(0, 1.2, (SAID, SAID))
    return model, model + rng.normal(0, 0.8, (SAID, SAID))


class Chains:
    """Stands for a runner: logits follow from the last token alone."""

    def __init__(self, *, speculate: bool) -> None:
        self.rows, self.context, self.chunk, self.speculate = ROWS, 64, 16, speculate
        self._tables = [torch.full((VOCABULARY, VOCABULARY), -1e4) for _ in range(2)]
        said = slice(FIRST, FIRST + SAID)
        for table, logits in zip(self._tables, tables(), strict=True):
            table[said, said] = torch.from_numpy(logits).float()
        config = SimpleNamespace(vocab_size=VOCABULARY, eos_token_id=1)
        head = SimpleNamespace(device=torch.device("cpu"))
        self.model = SimpleNamespace(config=config, head=head, device=Device("cpu", 0, "gloo"), ops=Operators())
        self._latest = torch.zeros(ROWS, dtype=torch.int64)

    def keep(self, rows: slice | Tensor, tokens: Tensor) -> None:
        self._latest[rows] = tokens

    def run(self, order: Prefill | Together | Decode | Next) -> Tensor:
        model = self._tables[0]
        if isinstance(order, Next):
            return model[self._latest][:, None]
        if isinstance(order, Decode):
            longest = max(map(len, order.tokens))
            return model[torch.tensor([[*each, *[0] * (longest - len(each))] for each in order.tokens])]
        pieces = order.pieces if isinstance(order, Together) else (order,)
        return model[torch.tensor([piece.tokens[-1] for piece in pieces])]

    def draft(self, order: Draft, choose: Choose) -> Drafts:
        tokens = torch.tensor([each[-1] if each else 0 for each in order.following])
        chosen, logits = list[Tensor](), list[Tensor]()
        for place in range(BLOCK):
            logits.append(self._tables[1][tokens])
            tokens = choose(place, logits[-1])
            chosen.append(tokens)
        return Drafts(torch.stack(chosen, 1), torch.stack(logits, 1), None)


def kept(logits: NDArray[np.float64], how: Sampling) -> NDArray[np.float64]:
    """Chances by the filters' definitions, each on what the one before leaves."""
    p = np.exp((logits - logits.max(-1, keepdims=True)) / how.temperature)
    for row in p:
        row[row < how.min_p * row.max()] = 0
        if how.top_k:
            row[np.argsort(-row)[how.top_k :]] = 0
        row /= row.sum()
        order = np.argsort(-row)
        row[order[np.searchsorted(np.cumsum(row[order]), how.top_p) + 1 :]] = 0
        row /= row.sum()
    return cast("NDArray[np.float64]", p)


def expected(how: Sampling, length: int) -> dict[tuple[int, ...], float]:
    """The chance of each text of the first `length` tokens."""
    chances, texts = kept(tables()[0], how), {}
    for text in itertools.product(range(SAID), repeat=length):
        steps = itertools.pairwise((PROMPT[-1] - FIRST, *text))
        texts[text] = float(np.prod([chances[a, b] for a, b in steps]))
    return texts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


Texts = list[tuple[int, ...]]


def spoken(tokenizer: Tokenizer, how: Sampling, *, speculate: bool) -> tuple[Texts, Scheduler]:
    """A text for each seed."""
    scheduler = Scheduler(cast("Runner", Chains(speculate=speculate)), tokenizer)
    texts: dict[int, list[int]] = {
        scheduler.submit(PROMPT, replace(how, seed=seed, max_tokens=LENGTH)): [] for seed in range(SEEDS)
    }
    while scheduler.busy:
        for event in scheduler.step():
            texts[event.key] += [token - FIRST for token in event.tokens]
    return [tuple(text) for text in texts.values()], scheduler


def p_value(texts: Texts, how: Sampling, length: int) -> float:
    """Chi-square of the first `length` tokens together; texts expected fewer than 8 times are one cell."""
    counts = Counter(text[:length] for text in texts)
    chances = expected(how, length)
    if any(chances[text] == 0 for text in counts):
        return 0.0  # a token that the filters cut off
    common = [text for text, chance in chances.items() if chance * len(texts) >= 8]
    seen = [counts[text] for text in common]
    wanted = [chances[text] * len(texts) for text in common]
    rest = len(texts) - sum(wanted)
    if rest > 1e-6 * len(texts):
        seen, wanted = [*seen, len(texts) - sum(seen)], [*wanted, rest]
    return float(stats.chisquare(seen, wanted).pvalue)


def smallest_p(texts: Texts, how: Sampling) -> float:
    """Of the first token, of the first two together, and so on."""
    return min(p_value(texts, how, length) for length in range(1, LENGTH + 1))


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "top-p and min-p",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("hot", "top-p", "min-p", "top-k")),
    ],
)
def test_texts_are_equal_seed_by_seed_and_follow_the_models_distribution(tokenizer: Tokenizer, name: str) -> None:
    how = SAMPLINGS[name]
    plain, _ = spoken(tokenizer, how, speculate=False)
    drafted, scheduler = spoken(tokenizer, how, speculate=True)
    assert drafted == plain  # the race of a place has the same keys for drafts and model
    assert 0.2 < scheduler.totals.accepted / scheduler.totals.drafted < 0.95
    assert smallest_p(drafted, how) > SURE


def accepts_all(each: Running, tokens: list[Token]) -> tuple[list[Token], Acceptance | None]:
    return [*((draft, None) for draft in each.drafts), tokens[-1]], None


def test_planted_acceptance_of_every_draft_is_seen(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "_judge", accepts_all)
    texts, _ = spoken(tokenizer, SAMPLINGS["plain"], speculate=True)
    assert p_value(texts, SAMPLINGS["plain"], 1) > SURE  # nothing is drafted of the first
    assert smallest_p(texts, SAMPLINGS["plain"]) < ALARM


class Rejecting:
    """Accepts a draft with min(1, P / Q), and draws from max(P - Q, 0), made a distribution, where it does not.

    Another lossless way, with draws of its own (so that texts differ seed by seed): what the check has to let pass.
    """

    def __init__(self, how: Sampling, *, residual: bool) -> None:
        """Without `residual` it draws from P after a rejection, as if nothing had been tried."""
        self._rng, self._residual = np.random.default_rng(3), residual
        self._p, self._q = (kept(table, how) for table in tables())

    def __call__(self, each: Running, tokens: list[Token]) -> tuple[list[Token], Acceptance | None]:
        before, taken = each.last - FIRST, list[Token]()
        for place, draft in enumerate(each.drafts):
            p, q = self._p[before], self._q[before]
            if self._rng.random() >= p[draft - FIRST] / q[draft - FIRST]:
                left = np.maximum(p - q, 0) if self._residual else p
                each.rejected = len(each.drafts) - place
                return [*taken, (FIRST + int(self._rng.choice(SAID, p=left / left.sum())), None)], None
            taken.append((draft, None))
            before = draft - FIRST
        each.rejected = 0
        return [*taken, tokens[-1]], None


def test_rejection_sampling_passes_and_is_seen_without_its_residual(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = SAMPLINGS["plain"]
    monkeypatch.setattr(guessing, "_judge", Rejecting(how, residual=True))
    assert smallest_p(spoken(tokenizer, how, speculate=True)[0], how) > SURE
    monkeypatch.setattr(guessing, "_judge", Rejecting(how, residual=False))
    assert smallest_p(spoken(tokenizer, how, speculate=True)[0], how) < ALARM


def test_planted_draws_of_one_place_for_all_are_seen_in_the_joint_distribution_only(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Sampler.at

    def at(self: Sampler, n: int) -> Choice:
        return original(self, 0)

    monkeypatch.setattr(Sampler, "at", at)
    how = SAMPLINGS["hot"]
    texts, _ = spoken(tokenizer, how, speculate=True)
    assert p_value(texts, how, 1) > SURE
    assert p_value(texts, how, 2) < ALARM


def test_planted_drafts_judged_by_logits_without_filters_are_seen(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # accepts what the unfiltered model would have chosen: top-p reaches the answer's first token alone
    original = Sampler.at

    def at(self: Sampler, n: int) -> Choice:
        return replace(original(self, n), top_p=1.0) if n else original(self, n)

    monkeypatch.setattr(Sampler, "at", at)
    texts, _ = spoken(tokenizer, SAMPLINGS["top-p"], speculate=True)
    assert p_value(texts, SAMPLINGS["top-p"], 1) > SURE
    assert p_value(texts, SAMPLINGS["top-p"], 2) < ALARM
