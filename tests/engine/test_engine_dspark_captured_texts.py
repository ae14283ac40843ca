"""Texts by DSpark's captured steps are those of plain steps without drafts, wherever drafts are rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_checkpoint import Checkpoint
from ranks import on_ranks
from small_tokenizer import write_tokenizer
from test_engine_decode_pairs import record_like_a_graph
from test_engine_dspark_speculation import BLOCK, PROMPTS, SAMPLINGS, Forced, terse, tokens_of

from flagrelease import engine
from flagrelease.engine.batch import runner as runner_module
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler, generate_all
from flagrelease.engine.decode.stepper import CapturedStepper
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model


@pytest.fixture(scope="module")
def terse_model(dspark: tuple[Checkpoint, Path]) -> Model:
    return terse(dspark[1])


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path)
    return Tokenizer(tmp_path)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    record_like_a_graph(monkeypatch)
    monkeypatch.setattr(runner_module, "choose_stepper", CapturedStepper)


@pytest.fixture(scope="module")
def spoken(terse_model: Model, tmp_path_factory: pytest.TempPathFactory) -> list[dict[int, list[int]]]:
    """Without speculation, by plain steps."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    runners = (Scheduler(Runner(terse_model, 4, 300), Tokenizer(folder)) for _ in SAMPLINGS)
    return [tokens_of(scheduler, how) for scheduler, how in zip(runners, SAMPLINGS, strict=True)]


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(0, id="greedy", marks=pytest.mark.slow),
        pytest.param(1, id="sampled", marks=pytest.mark.slow),
        pytest.param(2, id="top-p and penalties"),
    ],
)
def test_the_same_tokens_as_without_drafts(
    terse_model: Model, tokenizer: Tokenizer, spoken: list[dict[int, list[int]]], how: int
) -> None:
    scheduler = Scheduler(Runner(terse_model, 4, 300, speculate=True), tokenizer)
    assert tokens_of(scheduler, SAMPLINGS[how]) == spoken[how]
    assert 10 < scheduler.totals.accepted < scheduler.totals.drafted - 20


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize(
    "right", [0, 1, BLOCK, *(pytest.param(place, marks=pytest.mark.slow) for place in range(2, BLOCK))]
)
def test_a_rejection_at_each_place_changes_no_token(
    terse_model: Model, tokenizer: Tokenizer, spoken: list[dict[int, list[int]]], right: int
) -> None:
    scheduler = Forced(Runner(terse_model, 4, 300, speculate=True), tokenizer)
    scheduler.tokens, scheduler.right = spoken[1], right
    assert tokens_of(scheduler, SAMPLINGS[1]) == spoken[1]


def texts_on_ranks(release: Path, folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "choose_stepper", CapturedStepper)
        scheduler = Scheduler(Runner(terse(release), 2, 300, speculate=True), Tokenizer(folder))
        if not scheduler.runner.model.groups.is_leader:
            scheduler.runner.follow()
            return None
        results = [generate_all(scheduler, PROMPTS[:4], how) for how in (SAMPLINGS[0], SAMPLINGS[2])]
        scheduler.runner.stop()
        return [[(each.text, each.drafted, each.accepted) for each in texts] for texts in results]


@pytest.mark.slow
def test_two_ranks_say_what_one_does(dspark: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert on_ranks(2, texts_on_ranks, dspark[1], tmp_path) == texts_on_ranks(dspark[1], tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("operators", ["triton", "auto"])
def test_the_same_text_on_the_device_with_drafts_and_without(
    dspark: tuple[Checkpoint, Path], tokenizer: Tokenizer, operators: str
) -> None:
    model = engine.load(dspark[1], "bf16", torch.float32, "auto", operators=operators, mtp=True)
    for how in SAMPLINGS[:2]:
        plain, drafted = (
            tokens_of(Scheduler(Runner(model, 4, 300, speculate=speculate), tokenizer), how)
            for speculate in (False, True)
        )
        assert drafted == plain
