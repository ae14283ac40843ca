"""`Side`: what one model answered to an exam, without the questions; saved by the machine that ran it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flagrelease.durable.files import write_whole
from flagrelease.errors import VerificationError
from flagrelease.model.v4.efforts import Efforts
from flagrelease.validate.exams.answerer import AskRules
from flagrelease.validate.exams.exam import Exam
from flagrelease.validate.recorded import read_recorded

ENOUGH_ANSWERS = 16  # by chance a sound server does not go wrong in all of them
LONG_ANSWER = 64  # tokens; shorter answers may well be the same text


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Answer(_Strict):
    """One answer.

    Attributes:
        value: the letter or the number; for other kinds what marking/mark.py keeps; None if there was none in the
            asked form.
        undecided: nobody could tell whether it is right; it counts as wrong.
        refused: there was none because the model declined to answer.
    """

    value: str | None
    tokens: int = Field(ge=0)
    finish: Literal["stop", "length"]
    reasoned: bool
    whole_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    undecided: bool = False
    refused: bool = False


class AnsweredItem(_Strict):
    """A question by its id, the right answer, and the answers in the order of their repeats."""

    id: str
    prompt_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    prompt_tokens: int = Field(ge=1)
    correct: str
    answers: tuple[Answer, ...] = Field(min_length=1)


_OF_QUESTIONS = ("exam_sha256", "prompts_sha256")


class Asked(_Strict):
    """What must be the same on two sides for their answers to be compared.

    `prompts_sha256` is of the whole prompts, with what the model's revision makes of the mode; None in the recordings
    of an older flagrelease, which did not keep it.
    """

    exam_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    kind: str
    prompt: str
    mode: str
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    prompts_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")

    @classmethod
    def of(cls, exam: Exam[AskRules], efforts: Efforts) -> Asked:
        """As `exam` and its rules have it, for a model with these efforts."""
        shared = cls.of_rules(exam.rules)
        return cls.model_validate(
            {"exam_sha256": exam.sha256, "prompts_sha256": exam.prompts_sha256(efforts), **shared}
        )

    @classmethod
    def of_rules(cls, rules: AskRules) -> dict[str, str | float | int]:
        """The fields that rules alone decide."""
        return {name: getattr(rules, name) for name in cls.model_fields if name not in _OF_QUESTIONS}


class Side(_Strict):
    """One model's answers to an exam.

    Attributes:
        subject: what answered: a release by the SHA-256 of its manifest, or a model behind an endpoint.
        stack: machine and software.
        revision: of the data.
    """

    schema_version: Literal[1] = 1
    subject: str = Field(min_length=1)
    stack: str = Field(min_length=1)
    revision: str
    asked: Asked
    items: tuple[AnsweredItem, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rectangular(self) -> Side:
        if len({len(item.answers) for item in self.items}) != 1:
            raise ValueError("items have different numbers of answers")
        if len({item.id for item in self.items}) != len(self.items):
            raise ValueError("an item appears twice")
        return self

    @property
    def repeats(self) -> int:
        """Answers to each question."""
        return len(self.items[0].answers)

    def first(self, repeats: int) -> Side:
        """The side after its first `repeats` answers to each question."""
        items = tuple(item.model_copy(update={"answers": item.answers[:repeats]}) for item in self.items)
        return self.model_copy(update={"items": items})

    def scores(self) -> NDArray[np.float64]:
        """[items, repeats]: 1 where the answer is right, 0 where it is wrong or invalid."""
        return np.array([[a.value == item.correct for a in item.answers] for item in self.items], dtype=np.float64)

    def tokens(self) -> NDArray[np.int64]:
        """[items, repeats]: generated tokens."""
        return np.array([[a.tokens for a in item.answers] for item in self.items], dtype=np.int64)

    def invalid_rate(self) -> float:
        """Share of answers without the asked form."""
        return float(np.mean([a.value is None for item in self.items for a in item.answers]))

    def truncated_rate(self) -> float:
        """Share of answers cut off at the limit of tokens."""
        return float(np.mean([a.finish == "length" for item in self.items for a in item.answers]))

    def undecided_rate(self) -> float:
        """Share of answers of which nobody could tell whether they are right."""
        return float(np.mean([a.undecided for item in self.items for a in item.answers]))

    def refused_rate(self) -> float:
        """Share of answers that decline to answer; they are among the invalid ones."""
        return float(np.mean([a.refused for item in self.items for a in item.answers]))

    def reasoned_rate(self) -> float:
        """Share of answers with reasoning in front of them."""
        return float(np.mean([a.reasoned for item in self.items for a in item.answers]))

    def alike_rate(self) -> float:
        """Share of items whose answers are all one text."""
        return float(np.mean([len({a.whole_sha256 for a in item.answers}) == 1 for item in self.items]))

    def repeats_are_copies(self) -> bool:
        """Whether long answers, of which there are some, are the first to their question again, every time.

        No sound server does that at a temperature above 0: its seed is constant, or it answers from a cache.
        """
        repeats = [(item.answers[0], again) for item in self.items for again in item.answers[1:]]
        same = [first.whole_sha256 == again.whole_sha256 for first, again in repeats if again.tokens >= LONG_ANSWER]
        return len(same) >= ENOUGH_ANSWERS and all(same)

    def save(self, path: Path) -> None:
        """Write it as JSON, an item a line; the file is absent or whole."""
        head = self.model_dump(mode="json", exclude={"items"})
        items = ",\n".join(json.dumps(item.model_dump(mode="json"), separators=(",", ":")) for item in self.items)
        write_whole(path, (json.dumps(head)[:-1] + f', "items": [\n{items}\n]}}\n').encode())

    @classmethod
    def read(cls, path: Path) -> Side:
        """The side in `path`.

        Raises:
            UsageError: there is none.
            VerificationError: it is not one.
        """
        return read_recorded(cls, path, "answers")


def refuse_other_rules(side: Side, rules: AskRules, name: str) -> None:
    """A side that was asked under other rules is not judged by these.

    Raises:
        VerificationError: names the rules that differ.
    """
    now = Asked.of_rules(rules)
    if differs := [key for key, value in now.items() if value != getattr(side.asked, key)]:
        raise VerificationError(f"{rules.title}: the {name} side was asked under another {' and '.join(differs)}")


def refuse_other_exam(native: Side, exam: Exam[AskRules], efforts: Efforts) -> None:
    """Before anything is asked: would the answers be comparable with the native side's?

    Raises:
        VerificationError: names what differs.
    """
    refuse_other_rules(native, exam.rules, "native")
    asked = Asked.of(exam, efforts)
    _refuse_other_prompts(native.asked, asked, exam.rules)
    if native.asked != asked:
        raise VerificationError(
            f"{exam.rules.title}: the native side sat another exam: its questions, options or answers are not those "
            f"that the rules give here ({exam.revision})"
        )


def _refuse_other_prompts(native: Asked, chip: Asked, rules: AskRules) -> None:
    """The same questions in the same mode can still be other prompts."""
    if native.exam_sha256 != chip.exam_sha256 or native.prompts_sha256 == chip.prompts_sha256:
        return
    if None in (native.prompts_sha256, chip.prompts_sha256):
        raise VerificationError(
            f"{rules.title}: an older flagrelease recorded one side and did not keep what its prompts were; record it "
            "again"
        )
    raise VerificationError(
        f"{rules.title}: the questions are the same, but in mode {rules.mode!r} the sides were given other prompts: "
        "another revision of the model, which reads efforts differently, or another chat format"
    )


def refuse_differences(native: Side, chip: Side, rules: AskRules) -> None:
    """Two sides that were asked different things are not compared.

    Raises:
        VerificationError: names what differs.
    """
    refuse_other_rules(native, rules, "native")
    refuse_other_rules(chip, rules, "chip")
    _refuse_other_prompts(native.asked, chip.asked, rules)
    if native.asked != chip.asked or len(native.items) != len(chip.items):
        raise VerificationError(f"{rules.title}: the sides sat different exams: other questions, options or answers")
    for ours, theirs in zip(native.items, chip.items, strict=True):
        if (ours.id, ours.prompt_sha256, ours.correct) != (theirs.id, theirs.prompt_sha256, theirs.correct):
            raise VerificationError(f"{rules.title}: the sides sat different exams: {ours.id!r} is not {theirs.id!r}")
        if ours.prompt_tokens != theirs.prompt_tokens:
            raise VerificationError(
                f"{rules.title}: the prompt of {ours.id!r} has {ours.prompt_tokens} tokens on the native side and "
                f"{theirs.prompt_tokens} on the chip: another chat format or tokenizer"
            )
