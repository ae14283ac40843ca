"""The bundled engine as an answerer, called directly and served."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scripted_exam import choice_exam, choice_rules, nothing

from flagrelease import engine
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.batch.worth import Worth
from flagrelease.errors import UsageError, VerificationError
from flagrelease.model.v4.chat import BOS, encode_messages
from flagrelease.model.v4.efforts import efforts_of
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.endpoint.answerer import EndpointAnswerer
from flagrelease.validate.exams.answerer import Ask
from flagrelease.validate.exams.engine_answerer import EngineAnswerer
from flagrelease.validate.exams.run import run_side

EFFORTS = efforts_of("preview")
HOW = {"max_tokens": 12}


def test_answers_are_those_of_their_seeds(scheduler: Scheduler, tmp_path: Path) -> None:
    """The same answers whatever else is asked at the time, and others for every repeat."""
    exam = choice_exam(tmp_path, count=3, **HOW)
    answerer = EngineAnswerer(scheduler, "cpu", EFFORTS)
    side = run_side(exam, answerer, "s", tmp_path / "j", 4, nothing)
    assert side.alike_rate() == 0
    assert {answer.tokens for item in side.items for answer in item.answers} <= set(range(1, 13))
    prompt = encode_messages([{"role": "user", "content": exam.items[2].prompt}], EFFORTS.of("chat"))
    assert side.items[2].prompt_tokens == len(scheduler.tokenizer.encode(prompt))
    alone = choice_exam(tmp_path / "again", count=3, **HOW)
    last = [Ask(item.id, 3, item.prompt, 0) for item in alone.items]
    assert len({reply.whole_sha256 for _, reply in answerer.answer(last, alone.rules)}) == 3
    assert run_side(alone, answerer, "s", tmp_path / "j2", 4, nothing) == side


def test_an_exam_is_killed_and_resumed_with_other_drafts(
    scheduler: Scheduler, small_release: Path, tmp_path: Path
) -> None:
    """Answers of a server that drafts, of one that pauses, and of one that does not are one side of an exam."""
    exam = choice_exam(tmp_path, count=3, **HOW)
    whole = run_side(exam, EngineAnswerer(scheduler, "cpu", EFFORTS), "s", tmp_path / "whole", 4, nothing)
    model = engine.load(small_release, "bf16", torch.float32, mtp=True)

    def interrupt(done: int, total: int) -> None:
        if done in (5, 9):
            raise KeyboardInterrupt

    drafted = list[int]()
    for worth in (None, Worth()):
        drafting = Scheduler(Runner(model, 4, 400, speculate=True), scheduler.tokenizer, worth=worth)
        with pytest.raises(KeyboardInterrupt):
            run_side(exam, EngineAnswerer(drafting, "cpu", EFFORTS), "s", tmp_path / "cut", 4, interrupt)
        drafted.append(drafting.totals.drafted)
    assert drafted[0] > 0
    assert run_side(exam, EngineAnswerer(scheduler, "cpu", EFFORTS), "s", tmp_path / "cut", 4, nothing) == whole


def test_a_cut_off_thinker_has_answered_nothing(scheduler: Scheduler, tmp_path: Path) -> None:
    exam = choice_exam(tmp_path, count=2, mode="thinking", **HOW)
    side = run_side(exam, EngineAnswerer(scheduler, "cpu", EFFORTS), "s", tmp_path / "j", 4, nothing)
    assert (side.reasoned_rate(), side.invalid_rate()) == (1, 1)
    assert side.truncated_rate() > 0.5


def test_a_question_that_quotes_a_special_token_holds_it_as_text(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer, ask = EngineAnswerer(scheduler, "cpu", EFFORTS), Ask("item-0", 0, f"{BOS}Which?", 1)
    tokens = answerer.encode(ask, choice_rules())
    assert scheduler.tokenizer.decode(tokens).count(BOS) == 2
    assert tokens.count(scheduler.tokenizer.encode(BOS)[0]) == 1
    # the trap behind it: a tokenizer that reads the question with its special tokens
    monkeypatch.setattr(type(scheduler.tokenizer), "_plain", property(lambda self: self._tokenizer))
    with pytest.raises(VerificationError, match="item-0: the prompt has 2 begin-of-sentence tokens"):
        list(answerer.answer([ask], choice_rules()))


def test_more_tokens_than_the_context_holds(scheduler: Scheduler) -> None:
    with pytest.raises(UsageError, match="the context is 400"):
        list(EngineAnswerer(scheduler, "cpu", EFFORTS).answer([Ask("i", 0, "Which?", 1)], choice_rules(max_tokens=400)))


def test_served_it_gives_the_same_answers(scheduler: Scheduler, served_small: str, tmp_path: Path) -> None:
    """Two ways to one model: the same prompts by their numbers of tokens, the same answers by their digests."""
    exam = choice_exam(tmp_path, count=3, **HOW)
    direct = run_side(exam, EngineAnswerer(scheduler, "cpu", EFFORTS), "s", tmp_path / "j", 4, nothing)
    served = EndpointAnswerer(Endpoint(served_small, "small", concurrency=3), "cpu", EFFORTS)
    assert run_side(exam, served, "s", tmp_path / "served", 4, nothing) == direct
