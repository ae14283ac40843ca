"""Sides of long contexts whose answers a script decides."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flagrelease.engine.efforts import read_efforts
from flagrelease.engine.text import Tokenizer
from flagrelease.model.v4.efforts import Efforts
from flagrelease.records.rules import LongContextRules
from flagrelease.validate.exams.answerer import Ask, AskRules, Reply
from flagrelease.validate.exams.side import Answer, AnsweredItem, Asked, Side
from flagrelease.validate.long_context.items import ContextExam, make_exam

TINY = Path(__file__).parents[3] / "examples" / "tiny" / "flagrelease-tiny-v4"
RULES = LongContextRules(form="ledger", lengths=(80, 152), depths=(0, 50, 100), items=20, max_tokens=48)
Script = Callable[[int, float, int], str]  # (length, depth, number) -> "right", "wrong", "invalid" or "cut"


def exam_of(rules: LongContextRules, length: int) -> ContextExam:
    return make_exam(rules, length, Tokenizer(TINY), read_efforts(TINY))


def exams_of(rules: LongContextRules) -> dict[int, ContextExam]:
    return {length: exam_of(rules, length) for length in rules.lengths}


def scripted(exams: dict[int, ContextExam], script: Script, subject: str = "someone") -> dict[int, Side]:
    """A side that answers as the script says."""
    return {length: _side(exam, length, script, subject) for length, exam in exams.items()}


def _side(exam: ContextExam, length: int, script: Script, subject: str) -> Side:
    items = []
    for item in exam.items:
        depth, _, number = item.id.partition("/")
        said = script(length, float(depth), int(number))
        value = {"right": item.answer, "wrong": "-1", "invalid": None, "cut": None}[said]
        digest = hashlib.sha256(said.encode()).hexdigest()
        answer = Answer(
            value=value, tokens=9, finish="length" if said == "cut" else "stop", reasoned=False, whole_sha256=digest
        )
        items.append(
            AnsweredItem(
                id=item.id,
                prompt_sha256=item.prompt_sha256,
                prompt_tokens=length,
                correct=item.answer,
                answers=(answer,),
            )
        )
    asked = Asked.of(exam, read_efforts(TINY))
    return Side(subject=subject, stack=f"stack of {subject}", revision=exam.revision, asked=asked, items=tuple(items))


@dataclass
class Oracle:
    """Looks the answer up; `wrong`: items that it does not find. `interrupt_after` so many answers, as a user does."""

    exam: ContextExam
    wrong: frozenset[str] = frozenset()
    interrupt_after: int | None = None
    prompt_tokens: int = 80
    stack: str = "oracle"
    asked: list[Ask] = field(default_factory=list)
    efforts: Efforts = field(default_factory=lambda: read_efforts(TINY))

    def answer(self, asks: Sequence[Ask], rules: AskRules) -> Iterator[tuple[Ask, Reply]]:
        answers = {item.id: item.answer for item in self.exam.items}
        for ask in asks:
            if self.interrupt_after is not None and len(self.asked) == self.interrupt_after:
                raise KeyboardInterrupt
            self.asked.append(ask)
            given = "-1" if ask.item in self.wrong else answers[ask.item]
            text = f"It is \\boxed{{{given}}}."
            yield ask, Reply(text, False, self.prompt_tokens, 5, "stop", hashlib.sha256(text.encode()).hexdigest())
