"""The verdict on invariance, from answers that are written here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from flagrelease.durable.log import AppendLog
from flagrelease.records.report import Stage
from flagrelease.records.rules import InvarianceRules
from flagrelease.validate.endpoint.replies import ChatReply, ScoredToken, TokensUsed
from flagrelease.validate.invariance.difference import Said, SaidToken, difference
from flagrelease.validate.invariance.figures import InvarianceFigures
from flagrelease.validate.invariance.prompts import InvariancePrompt, invariance_prompts
from flagrelease.validate.invariance.questions import register_questions, says
from flagrelease.validate.invariance.said import said_of
from flagrelease.validate.invariance.stage import Heard, invariance_stage

RULES = InvarianceRules(texts=2, lengths=(100, 200), questions=2, concurrency=(2,))
PROMPTS = [
    InvariancePrompt("text", "Say something."),
    InvariancePrompt("ledger-100-1", "..", 42, 100),
    InvariancePrompt("ledger-100-2", "..", 43, 100, shares=True),
    InvariancePrompt("ledger-200-1", "..", 44, 200),
    InvariancePrompt("ledger-200-2", "..", 45, 200, shares=True),
]
TEXTS = {"text": "a b c", "ledger-100-1": "it is 42", "ledger-100-2": "43", "ledger-200-1": "44", "ledger-200-2": "45"}


def said(circumstance: str, prompt: str, text: str, shift: float = 0.0, margin: float | None = 3.0) -> Said:
    tokens = tuple(SaidToken(text=word, logprob=-0.5 - shift, margin=margin) for word in text.split())
    size = int(prompt.split("-")[1]) if "-" in prompt else 10
    return Said(circumstance=circumstance, prompt=prompt, text=text, prompt_tokens=size, answer_tokens=3, tokens=tokens)


def everything(circumstance: str, **changes: Any) -> list[Said]:
    return [said(circumstance, prompt, text, **changes) for prompt, text in TEXTS.items()]


def heard(**changed: Sequence[Said]) -> Heard:
    names = {"alone": "alone", "again": "again", "once_more": "once more", "streamed": "streamed", "two": "2 at once"}
    spoken = {name: changed.get(key, everything(name)) for key, name in names.items()}
    varied = {key: value for key, value in changed.items() if key not in names}
    return Heard("m at http://x", dict.fromkeys(varied, "m at http://y"), spoken, varied)


def with_text(circumstance: str, prompt: str, text: str, margin: float | None = 3.0) -> list[Said]:
    return [
        said(circumstance, prompt, text, margin=margin) if each.prompt == prompt else each
        for each in everything(circumstance)
    ]


def judged(**changed: Sequence[Said]) -> tuple[Stage, InvarianceFigures]:
    stage = invariance_stage(heard(**changed), PROMPTS, RULES)
    return stage, InvarianceFigures.model_validate(stage.figures)


def test_equal_answers_pass_and_variants_that_were_not_given_are_left_open() -> None:
    stage, figures = judged()
    assert stage.verdict == "pass"
    names = [row.name for row in figures.circumstances]
    assert names == [
        "sent again", "after the whole prompt", "after a shared beginning", "streamed", "2 at once", "lengths",
    ]  # fmt: skip
    assert [row.texts for row in figures.circumstances] == [5, 3, 2, 5, 5, 0]
    assert figures.requests == 25
    assert any("--variant" in line for line in stage.leaves_open)
    assert "variant" not in " ".join(judged(eager=everything("eager"))[0].leaves_open)


@pytest.mark.parametrize(
    ("circumstance", "row"),
    [("two", "2 at once"), ("streamed", "streamed"), ("once_more", "sent again"), ("eager", "variant eager")],
)
def test_another_text_at_a_clear_margin_fails_in_its_circumstance_alone(circumstance: str, row: str) -> None:
    stage, figures = judged(**{circumstance: with_text(circumstance, "text", "a x c")})
    assert stage.verdict == "fail"
    assert [each.name for each in figures.circumstances if each.verdict == "fail"] == [row]
    assert "of text token 2, by 3.00 nats" in stage.detail


def test_a_near_tie_is_reported_as_one() -> None:
    close = [said("again", prompt, text, margin=0.2) for prompt, text in TEXTS.items()]
    stage, figures = judged(again=close, once_more=close, two=with_text("2 at once", "text", "a x c", margin=0.1))
    assert stage.verdict == "pass"
    parted = next(row for row in figures.circumstances if row.name == "2 at once").parted
    assert [(each.prompt, each.at, each.margin, each.parting) for each in parted] == [("text", 1, 0.2, "near tie")]


def test_a_token_that_one_side_is_sure_of_is_no_near_tie() -> None:
    first, second = said("a", "text", "a b", margin=0.1), said("b", "text", "a x", margin=4.0)
    assert difference(first, second, 0.5).parting == difference(second, first, 0.5).parting == "clear margin"


def test_an_answer_that_ends_early_is_judged_by_the_token_that_the_other_goes_on_with() -> None:
    found = difference(said("a", "text", "a b"), said("b", "text", "a"), 0.5)
    assert (found.parting, found.at, found.margin) == ("clear margin", 1, 3.0)


def test_without_log_probabilities_a_difference_cannot_be_judged() -> None:
    def bare(circumstance: str, text: str = "a b c") -> list[Said]:
        spoken = [each.model_copy(update={"tokens": ()}) for each in everything(circumstance)]
        return [each.model_copy(update={"text": text}) if each.prompt == "text" else each for each in spoken]

    same = {"alone": bare("alone"), "again": bare("again"), "once_more": bare("once more"), "streamed": bare("s")}
    assert judged(**same, two=bare("2 at once"))[0].verdict == "pass"
    stage, _ = judged(**same, two=bare("2 at once", "a b x"))
    assert stage.verdict == "cannot-tell"
    assert "nobody knows" in stage.detail


@pytest.mark.parametrize(("shift", "verdict"), [(0.04, "pass"), (0.06, "fail"), (1.2, "fail")])
def test_log_probabilities_may_be_apart_by_the_limits(shift: float, verdict: str) -> None:
    assert judged(two=everything("2 at once", shift=shift))[0].verdict == verdict


def test_what_repeating_gives_is_the_limit_where_it_is_more() -> None:
    stage, figures = judged(once_more=everything("once more", shift=0.04), two=everything("2 at once", shift=0.11))
    assert figures.mean_limit == pytest.approx(0.12)
    assert stage.verdict == "pass"


def test_a_server_that_does_not_repeat_itself_fails() -> None:
    stage, _ = judged(once_more=with_text("once more", "text", "x y z"))
    assert stage.verdict == "fail"
    assert stage.detail.startswith("sent again")


def test_a_length_at_which_nothing_is_found_fails_although_every_circumstance_agrees() -> None:
    def forgetful(circumstance: str) -> list[Said]:
        return [
            each if "-200-" not in each.prompt else said(circumstance, each.prompt, "99")
            for each in everything(circumstance)
        ]

    names = {"alone": "alone", "again": "again", "once_more": "once more", "streamed": "streamed", "two": "2 at once"}
    stage, figures = judged(**{key: forgetful(name) for key, name in names.items()})
    assert stage.verdict == "fail"
    assert [row.name for row in figures.circumstances if row.verdict == "fail"] == ["lengths"]
    assert "0 of 2 at 200 tokens" in stage.detail


def test_a_model_that_does_not_do_the_task_shows_nothing_by_lengths() -> None:
    def wrong(circumstance: str) -> list[Said]:
        return [said(circumstance, prompt, "no") for prompt in TEXTS]

    names = {"alone": "alone", "again": "again", "once_more": "once more", "streamed": "streamed", "two": "2 at once"}
    stage, _ = judged(**{key: wrong(name) for key, name in names.items()})
    assert stage.verdict == "not-informative"
    assert "lengths show nothing" in stage.detail


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("form", ["register", "ledger"])
def test_registers_are_as_long_as_they_should_be_and_have_their_answers(form: Any) -> None:
    for tokens in (150, 4000) if form == "register" else (30, 150):
        first, second = register_questions(form, tokens, 2, 7, words)
        shared = next(n for n, (a, b) in enumerate(zip(first.text, second.text, strict=False)) if a != b)
        assert tokens <= words(first.text) <= 1.1 * tokens + 80
        assert words(first.text[:shared]) >= tokens
        for asked in (first, second):
            place = asked.text.index(str(asked.answer))
            assert place < len(asked.text) / 2 + 200
    assert register_questions(form, 150, 1, 3, words) == register_questions(form, 150, 1, 3, words)
    assert register_questions(form, 150, 1, 3, words) != register_questions(form, 150, 1, 4, words)
    few = register_questions(form, 5, 3, 1, words)
    assert len({asked.text for asked in few}) == 3, "each question asks for another entry"
    if form == "ledger":
        with pytest.raises(ValueError, match="at most 64 rows"):
            register_questions(form, 1000, 1, 3, words)


@pytest.mark.parametrize(
    ("answer", "found"),
    [(" amber birch 47\\boxed{47}", True), ("47", True), ("It is 47.", True), ("47 or 48", False), ("none", False),
     ("147", False)],
)  # fmt: skip
def test_the_last_number_is_the_answer(answer: str, found: bool) -> None:
    assert says(answer, 47) is found


def test_prompts_differ_and_ask_for_two_things_of_each_register() -> None:
    prompts = invariance_prompts(RULES, words)
    assert [prompt.shares for prompt in prompts] == [False, False, False, True, False, True]
    assert len({prompt.content for prompt in prompts}) == len({prompt.id for prompt in prompts}) == 6


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_log_probabilities_that_are_no_numbers_fail_though_every_text_is_the_same(odd: float, tmp_path: Path) -> None:
    told = (ScoredToken("b", None, -0.5), ScoredToken("c", None, odd))
    used = TokensUsed(10, 2, None)
    reply = ChatReply("b c", "", (), "stop", used, told, None, None, None, None, None)
    heard_so = said_of("2 at once", "text", reply)
    with AppendLog(tmp_path / "log", "answers", 1, TypeAdapter(Said), {}) as log:
        log.append(heard_so, sync=True)
    with AppendLog(tmp_path / "log", "answers", 1, TypeAdapter(Said), {}) as log:
        assert list(log.records) == [heard_so], "a resumed run reads it"
    two = [heard_so.model_copy(update={"text": "a b c"}), *everything("2 at once")[1:]]
    stage, figures = judged(two=two)
    assert stage.verdict == "fail"
    assert stage.detail == "2 at once: 1 log-probabilities are NaN or infinite."
    assert [row.name for row in figures.circumstances if row.verdict == "fail"] == ["2 at once"]


@pytest.mark.parametrize(
    "given",
    [
        {"lengths": (200, 100)}, {"lengths": (100, 100)}, {"lengths": (0,)}, {"concurrency": (0,)},
        {"concurrency": (4, 4)}, {"tie": math.inf}, {"mean_difference": math.inf}, {"floors": math.inf},
        {"largest_difference": math.nan},
    ],
)  # fmt: skip
def test_rules_that_nothing_breaks_or_that_ask_the_same_twice_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        InvarianceRules(**given)
