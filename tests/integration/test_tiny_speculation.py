"""Drafts of a trained MTP stage, on the model of examples/tiny: the same answers, and how many drafts are right."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flagrelease import engine
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler, generate_all
from flagrelease.engine.batch.sequence import Generated
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model

TINY = Path(__file__).parents[2] / "examples" / "tiny"
sys.path.insert(0, str(TINY))

import tasks  # noqa: E402
import tokenizer  # noqa: E402

SOURCE = TINY / "flagrelease-tiny-v4"


@pytest.fixture(scope="module")
def model() -> Model:
    torch.set_num_threads(1)
    return engine.load(SOURCE, "native", mtp=True)


def answers(model: Model, temperature: float, *, speculate: bool) -> tuple[list[Generated], Scheduler]:
    encoder = tokenizer.load(SOURCE)
    asked = tasks.read_items(tasks.FOLDER / tasks.INTEGERS_1)[:4]
    prompts = [tokenizer.encode(encoder, tokenizer.user_turn(prompt)) for prompt, _ in asked]
    scheduler = Scheduler(Runner(model, 4, 320, speculate=speculate), Tokenizer(SOURCE))
    return generate_all(scheduler, prompts, Sampling(temperature, seed=1, max_tokens=40)), scheduler


def test_right_answers_with_drafts_that_are_right(model: Model) -> None:
    drafted, scheduler = answers(model, 1.0, speculate=True)
    expected = [reply for _, reply in tasks.read_items(tasks.FOLDER / tasks.INTEGERS_1)[:4]]
    assert [result.text for result in drafted] == expected
    assert scheduler.totals.accepted >= 0.9 * scheduler.totals.drafted > 0


def test_a_hot_text_is_the_same_with_fewer_right(model: Model) -> None:
    plain, _ = answers(model, 3.0, speculate=False)
    drafted, scheduler = answers(model, 3.0, speculate=True)
    assert [result.text for result in drafted] == [result.text for result in plain]
    assert 0.1 < scheduler.totals.accepted / scheduler.totals.drafted < 0.9


def test_a_broken_stage_costs_time_and_no_answer(model: Model) -> None:
    assert model.mtp is not None
    broken = replace(model, mtp=replace(model.mtp, enorm=torch.zeros_like(model.mtp.enorm)))  # deaf to the last token
    plain, _ = answers(model, 1.0, speculate=False)
    drafted, scheduler = answers(broken, 1.0, speculate=True)
    assert [result.text for result in drafted] == [result.text for result in plain]
    assert scheduler.totals.accepted < 0.7 * scheduler.totals.drafted
