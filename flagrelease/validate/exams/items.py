"""Items: the questions of a benchmark, out of the records of its kind of data file.

Options are ordered by SHA-256 of record id and option. A random generator would do it differently on another host, and
two machines would sit different exams.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flagrelease.errors import UsageError
from flagrelease.records.rules import BenchmarkRules, ExamKind
from flagrelease.validate.exams.extraction import read_integer
from flagrelease.validate.exams.instructions import CHECKS, is_decided
from flagrelease.validate.exams.numbers import read_number
from flagrelease.validate.exams.records import Columns, Record, read_records

LETTERS = "ABCD"
CODE_PASSES, INSTRUCTIONS_FOLLOWED = "passes", "follows"
_CORRECT = "Correct Answer"
_WRONG = tuple(f"Incorrect Answer {i}" for i in (1, 2, 3))


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    Attributes:
        prompt: the user's turn.
        answer: what a right answer is recorded as: a letter, a number in its shortest form, an expression, or a word
            where rightness is what tests or rules find.
        key: the tests or rules, as JSON; empty for kinds that need none.
    """

    id: str
    prompt: str
    answer: str
    key: str = ""

    @property
    def prompt_sha256(self) -> str:
        """Of the UTF-8 text."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()

    @property
    def identity(self) -> list[str]:
        """What two items with the same one have in common: all of it."""
        own = [self.id, self.prompt_sha256, self.answer]
        return [*own, hashlib.sha256(self.key.encode()).hexdigest()] if self.key else own


def read_items(rules: BenchmarkRules, paths: Sequence[Path]) -> list[Item]:
    """The items of data files of the kind that the rules name.

    Raises:
        UsageError: a file is missing or malformed, or an answer in it is not of its kind.
    """
    forms = _FORMS[rules.kind]
    columns = [columns for columns, _ in forms]
    makers = dict(forms)
    items = []
    for path in paths:
        form, records = read_records(path, columns)
        for number, record in enumerate(records, 1):
            try:
                item = makers[form](rules, record)
            except (AttributeError, KeyError, TypeError, ValueError) as error:  # the message may quote the record
                raise UsageError(
                    f"{path}: record {number} is not of the form of {rules.kind} ({type(error).__name__})"
                ) from None
            items += [] if item is None else [item]
    if not items:
        raise UsageError(f"{', '.join(map(str, paths))}: no record has a question that can be marked")
    return items


def order_options(record_id: str, options: Sequence[str]) -> list[str]:
    """The options in the order of SHA-256(record id, newline, option)."""
    return sorted(options, key=lambda option: hashlib.sha256(f"{record_id}\n{option}".encode()).digest())


def _choice(rules: BenchmarkRules, record: Record) -> Item:
    wrong = [record[column] for column in _WRONG]
    if record[_CORRECT] in wrong:
        raise UsageError(f"record {record['Record ID']!r}: a wrong option is the same as the right one")
    ordered = order_options(record["Record ID"], [record[_CORRECT], *wrong])
    options = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, ordered, strict=True))
    answer = LETTERS[ordered.index(record[_CORRECT])]
    return Item(record["Record ID"], _fill(rules.prompt, question=record["Question"], options=options), answer)


def _integer(rules: BenchmarkRules, record: Record) -> Item:
    answer = read_integer(record["answer"])
    if answer is None:
        raise UsageError(f"record {_name(record['problem'])}: the answer is not an integer")
    return Item(_name(record["problem"]), _fill(rules.prompt, question=record["problem"]), answer)


def _number(rules: BenchmarkRules, record: Record) -> Item:
    """GSM8K's answers are solutions that end with a line "#### 18"."""
    answer = read_number(record["answer"].rpartition("####")[2])
    if answer is None:
        raise UsageError(f"record {_name(record['question'])}: the answer is not a number")
    return Item(_name(record["question"]), _fill(rules.prompt, question=record["question"]), answer)


def _expression(rules: BenchmarkRules, record: Record) -> Item:
    return Item(_name(record["problem"]), _fill(rules.prompt, question=record["problem"]), record["answer"])


def _function(rules: BenchmarkRules, record: Record) -> Item:
    """HumanEval: a function to complete, and a test that calls it."""
    tests = {"entry_point": record["entry_point"], "prompt": json.loads(record["prompt"])}
    key = json.dumps(tests | {"test": json.loads(record["test"])})
    return Item(record["task_id"], _fill(rules.prompt, question=tests["prompt"].strip("\n")), CODE_PASSES, key)


def _program(rules: BenchmarkRules, record: Record) -> Item | None:
    """LiveCodeBench: a program that reads and writes lines. Functions and the hidden cases (a pickle) are left out."""
    cases = json.loads(record["public_test_cases"])
    if any(case.get("testtype") != "stdin" for case in cases):
        return None
    key = json.dumps({"cases": [{"input": case["input"], "output": case["output"]} for case in cases]})
    return Item(record["question_id"], _fill(rules.prompt, question=record["question_content"]), CODE_PASSES, key)


def _instructions(rules: BenchmarkRules, record: Record) -> Item | None:
    """IFEval: what no rule decides is left out."""
    names, given = json.loads(record["instruction_id_list"]), json.loads(record["kwargs"])
    checks = [
        (name, {key: value for key, value in each.items() if value is not None})
        for name, each in zip(names, given, strict=True)
    ]
    if not all(is_decided(name, each) for name, each in checks):
        return None
    for name, each in checks:
        CHECKS[name]("", each)  # arguments that it needs and lacks show here, not when an answer is marked
    prompt = record["prompt"]
    return Item(_name(prompt), _fill(rules.prompt, question=prompt), INSTRUCTIONS_FOLLOWED, json.dumps(checks))


_FORMS: dict[ExamKind, tuple[tuple[Columns, Callable[[BenchmarkRules, Record], Item | None]], ...]] = {
    "multiple-choice": ((Columns(("Record ID", "Question", _CORRECT, *_WRONG)), _choice),),
    "integer": ((Columns(("problem", "answer")), _integer),),
    "number": ((Columns(("question", "answer")), _number),),
    "expression": ((Columns(("problem", "answer")), _expression),),
    "code": (
        (Columns(("task_id", "entry_point"), ("prompt", "test")), _function),
        (Columns(("question_id", "question_content", "public_test_cases")), _program),
    ),
    "instructions": ((Columns(("prompt",), ("instruction_id_list", "kwargs")), _instructions),),
}


def _name(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()[:12]


def _fill(prompt: str, **parts: str) -> str:
    """Replace the places of a prompt in one pass: a brace in a question means nothing."""
    return re.sub(r"\{(question|options)\}", lambda place: parts.get(place[1], place[0]), prompt)
