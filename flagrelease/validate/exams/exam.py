"""An exam: the questions of a benchmark as they are put to a model, the same on every machine.

Options are ordered by SHA-256 of record id and option. A random generator would do it differently on another host, and
two machines would sit different exams.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from typing_extensions import TypeVar

from flagrelease.errors import UsageError
from flagrelease.model.v4.chat import encode_messages
from flagrelease.model.v4.efforts import Efforts
from flagrelease.model.v4.encoded import EncodedChat
from flagrelease.records.rules import BenchmarkRules
from flagrelease.validate.exams.answerer import AskRules
from flagrelease.validate.exams.extraction import read_integer
from flagrelease.validate.exams.records import Record, read_records

LETTERS = "ABCD"
_CORRECT = "Correct Answer"
_WRONG = tuple(f"Incorrect Answer {i}" for i in (1, 2, 3))
_CHOICE_COLUMNS = ("Record ID", "Question", _CORRECT, *_WRONG)
_INTEGER_COLUMNS = ("problem", "answer")


@dataclass(frozen=True, slots=True)
class Item:
    """One question. `prompt` is the user's turn, `answer` a letter or an integer in its shortest form."""

    id: str
    prompt: str
    answer: str

    @property
    def prompt_sha256(self) -> str:
        """Of the UTF-8 text."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()


R = TypeVar("R", bound=AskRules, covariant=True, default=BenchmarkRules)


@dataclass(frozen=True, slots=True)
class Exam(Generic[R]):
    """The questions of a benchmark, or those about long contexts.

    Attributes:
        revision: the commit of the data, or `sha256:` and the digest of a user's own file.
        sha256: of ids, prompts and answers: two sides with the same one sat the same exam.
    """

    rules: R
    revision: str
    items: tuple[Item, ...]
    sha256: str

    def prompts_sha256(self, efforts: Efforts) -> str:
        """Of the whole prompts, as a model with these efforts reads them: the same mode is another text to another."""
        return digest_of([encode_item(item.prompt, self.rules, efforts).text for item in self.items])


def read_exam(rules: BenchmarkRules, paths: Sequence[Path], revision: str | None = None) -> Exam:
    """The exam that `rules` ask for, from files of the kind they name.

    Args:
        revision: the commit that the files were downloaded from; None: they are the user's own.

    Raises:
        UsageError: a file is missing or malformed, or an id appears twice.
    """
    if rules.kind == "multiple-choice":
        items = [_choice_item(rules, record) for path in paths for record in read_records(path, _CHOICE_COLUMNS)]
    else:
        items = [_integer_item(rules, record) for path in paths for record in read_records(path, _INTEGER_COLUMNS)]
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise UsageError(f"{', '.join(map(str, paths))}: the record {item.id!r} appears twice")
        seen.add(item.id)
    if revision is None:
        revision = "sha256:" + digest_of([hashlib.sha256(path.read_bytes()).hexdigest() for path in paths])
    return Exam(rules, revision, tuple(items), digest_of([[i.id, i.prompt_sha256, i.answer] for i in items]))


def order_options(record_id: str, options: Sequence[str]) -> list[str]:
    """The options in the order of SHA-256(record id, newline, option)."""
    return sorted(options, key=lambda option: hashlib.sha256(f"{record_id}\n{option}".encode()).digest())


def encode_item(prompt: str, rules: AskRules, efforts: Efforts) -> EncodedChat:
    """The chat in which a question is asked."""
    return encode_messages([{"role": "user", "content": prompt}], efforts.of(rules.mode))


def _choice_item(rules: BenchmarkRules, record: Record) -> Item:
    wrong = [record[column] for column in _WRONG]
    if record[_CORRECT] in wrong:
        raise UsageError(f"record {record['Record ID']!r}: a wrong option is the same as the right one")
    ordered = order_options(record["Record ID"], [record[_CORRECT], *wrong])
    options = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, ordered, strict=True))
    answer = LETTERS[ordered.index(record[_CORRECT])]
    return Item(record["Record ID"], _fill(rules.prompt, question=record["Question"], options=options), answer)


def _integer_item(rules: BenchmarkRules, record: Record) -> Item:
    name = hashlib.sha256(record["problem"].encode()).hexdigest()[:12]
    answer = read_integer(record["answer"])
    if answer is None:
        raise UsageError(f"record {name}: the answer is not an integer")
    return Item(name, _fill(rules.prompt, question=record["problem"]), answer)


def _fill(prompt: str, **parts: str) -> str:
    """Replace the places of a prompt in one pass: a brace in a question means nothing."""
    return re.sub(r"\{(question|options)\}", lambda place: parts.get(place[1], place[0]), prompt)


def digest_of(value: object) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()
