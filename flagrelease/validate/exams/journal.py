"""The journal of a benchmark: every answer as soon as it is there, so that a run of millions of tokens can be resumed.

It is an append log (durable/log.py) that only its owner can read. Its first line says what was asked of whom; each
further line is an answer: item, repeat, prompt digest, the letter or integer, lengths. No text of questions or answers
is in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from flagrelease.durable.log import AppendLog
from flagrelease.validate.exams.side import Answer, Asked


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class JournalHead(_Strict):
    """Which run the answers belong to. `subject` and `stack` are those of a `Side`."""

    title: str
    subject: str
    stack: str
    asked: Asked

    def binding(self) -> dict[str, str]:
        """By names for the user; numbers and texts as JSON, so that 1 and "1" differ."""
        fields = self.model_dump(exclude={"asked"}) | self.asked.model_dump()
        return {name.replace("_", " "): json.dumps(value) for name, value in fields.items()}


class JournalEntry(_Strict):
    """One answer."""

    item: str
    repeat: int = Field(ge=0)
    prompt_sha256: str
    prompt_tokens: int
    answer: Answer

    @property
    def key(self) -> tuple[str, int, str]:
        """Which answer it is."""
        return self.item, self.repeat, self.prompt_sha256


class AnswerJournal:
    """The answers so far, by their keys."""

    def __init__(self, log: AppendLog[JournalEntry]) -> None:
        """Take over what the log holds."""
        self._log = log
        self.entries = {entry.key: entry for entry in log.records}

    def add(self, entry: JournalEntry) -> None:
        """Record an answer; when this returns it is on the disk."""
        self.entries[entry.key] = entry
        self._log.append(entry, sync=True)


@contextmanager
def open_journal(path: Path, head: JournalHead) -> Iterator[AnswerJournal]:
    """Begin the journal at `path`, or resume it; it is locked against other processes meanwhile.

    Raises:
        ResourceError: it belongs to another run, is no such journal, is in use, or cannot be written.
    """
    with AppendLog(path, "answers to a benchmark", 2, TypeAdapter(JournalEntry), head.binding()) as log:
        yield AnswerJournal(log)
