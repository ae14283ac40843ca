"""Small exams, and models that answer them by a script: what tests of benchmarks share."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flagrelease.model.v4.efforts import Efforts, efforts_of
from flagrelease.records.rules import BenchmarkRules
from flagrelease.validate.exams.answerer import Ask, Reply
from flagrelease.validate.exams.exam import Exam, read_exam

MARKER = "zyzzyva-quokka"  # stands in every question and option; must not be in anything that is written or said
CHOICE_PROMPT = "{question}\n{options}\nAnswer:"


def choice_rules(**changes: Any) -> BenchmarkRules:
    said = {
        "title": "Choices", "kind": "multiple-choice", "dataset": "someone/choices", "files": ("choices.jsonl",),
        "revision": "main", "prompt": CHOICE_PROMPT, "mode": "chat", "max_tokens": 40, "margin": 10, "repeats": 4,
    }  # fmt: skip
    return BenchmarkRules.model_validate(said | changes)


def choice_records(count: int) -> list[dict[str, str]]:
    return [
        {
            "Record ID": f"item-{i}",
            "Question": f"Which {MARKER} has number {i}?",
            "Correct Answer": f"the {MARKER} {i}",
            **{f"Incorrect Answer {j}": f"the {MARKER} {1000 * j + i}" for j in (1, 2, 3)},
        }
        for i in range(count)
    ]


def write_jsonl(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def choice_exam(folder: Path, count: int = 12, **changes: Any) -> Exam:
    folder.mkdir(parents=True, exist_ok=True)
    return read_exam(choice_rules(**changes), [write_jsonl(folder / "choices.jsonl", choice_records(count))])


@dataclass
class ScriptedAnswerer:
    """Answers each question rightly with probability `skill(item)`, decided by the seed of the ask.

    `interrupt_after`: raise KeyboardInterrupt after so many answers, as a user does.
    """

    exam: Exam
    skill: Callable[[str], float] = lambda _: 0.8
    stack: str = "scripted"
    invalid: float = 0.0
    truncated: float = 0.0
    reasoned: bool = False
    tokens: int = 10
    prompt_tokens: int = 50
    constant: bool = False
    interrupt_after: int | None = None
    asked: list[Ask] = field(default_factory=list)
    efforts: Efforts = field(default_factory=lambda: efforts_of("0731"))

    def answer(self, asks: Sequence[Ask], rules: BenchmarkRules) -> Iterator[tuple[Ask, Reply]]:
        answers = {item.id: item.answer for item in self.exam.items}
        for ask in sorted(asks, key=lambda ask: hashlib.sha256(repr(ask).encode()).digest()):  # not in their order
            if self.interrupt_after is not None and len(self.asked) == self.interrupt_after:
                raise KeyboardInterrupt
            self.asked.append(ask)
            draw = random.Random(0 if self.constant else ask.seed)
            right = answers[ask.item]
            wrong = next(letter for letter in "ABCD" if letter != right)
            given = right if draw.random() < self.skill(ask.item) else wrong
            text = f"{draw.random()} {MARKER} \\boxed{{{given}}}"
            if draw.random() < self.invalid:
                text = "no idea"
            finish = "length" if draw.random() < self.truncated else "stop"
            digest = hashlib.sha256(text.encode()).hexdigest()
            yield ask, Reply(text, self.reasoned, self.prompt_tokens, self.tokens, finish, digest)


def nothing(there: int, wanted: int) -> None:
    """A progress display that shows nothing."""
