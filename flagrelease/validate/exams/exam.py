"""An exam: the questions of a benchmark as they are put to a model, the same on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from typing_extensions import TypeVar

from flagrelease.errors import UsageError
from flagrelease.model.chats import encode_messages
from flagrelease.model.v4.efforts import Efforts
from flagrelease.model.v4.encoded import EncodedChat
from flagrelease.records.rules import BenchmarkRules
from flagrelease.validate.exams.answerer import AskRules
from flagrelease.validate.exams.items import Item, read_items

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
    items = read_items(rules, paths)
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise UsageError(f"{', '.join(map(str, paths))}: the record {item.id!r} appears twice")
        seen.add(item.id)
    if revision is None:
        revision = "sha256:" + digest_of([hashlib.sha256(path.read_bytes()).hexdigest() for path in paths])
    return Exam(rules, revision, tuple(items), digest_of([item.identity for item in items]))


def encode_item(prompt: str, rules: AskRules, efforts: Efforts) -> EncodedChat:
    """The chat in which a question is asked."""
    return encode_messages([{"role": "user", "content": prompt}], efforts.of(rules.mode))


def digest_of(value: object) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()
