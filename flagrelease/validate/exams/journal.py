"""Every answer as soon as it is there, so that a run of millions of tokens goes on after a kill at any moment.

A file of JSON lines that only its owner can read. The first line says what was asked of whom; each further one is an
answer: item, repeat, prompt digest, the letter or integer, lengths. No text of questions or answers is in it. A last
line cut off by a crash is dropped, and that answer is asked for again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flagrelease.errors import ResourceError
from flagrelease.validate.exams.side import Answer, Asked


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class JournalHead(_Strict):
    """Which run the answers belong to. `subject` and `stack` as of a `Side`."""

    schema_version: Literal[1] = 1
    title: str
    subject: str
    stack: str
    asked: Asked


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
    """The answers so far; locked against a second process while it is open."""

    def __init__(self, path: Path, head: JournalHead, descriptor: int) -> None:
        """Take over what `open_journal` opened and locked."""
        self._path, self._descriptor = path, descriptor
        self.entries: dict[tuple[str, int, str], JournalEntry] = {}
        self._read(head)

    def _read(self, head: JournalHead) -> None:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        os.ftruncate(self._descriptor, len(whole))
        lines = whole.splitlines()
        if not lines:
            self._append(head)
            return
        try:
            begun = JournalHead.model_validate_json(lines[0])
            entries = [JournalEntry.model_validate_json(line) for line in lines[1:]]
        except ValidationError as error:
            raise ResourceError(f"{self._path}: is not a journal of answers, or is damaged") from error
        was, now = _flat(begun), _flat(head)
        if differs := [name.replace("_", " ") for name in now if was[name] != now[name]]:
            raise ResourceError(
                f"{self._path}: was begun with another {' and '.join(differs)}; remove it to ask everything again"
            )
        self.entries = {entry.key: entry for entry in entries}

    def add(self, entry: JournalEntry) -> None:
        """Record an answer; when this returns it is on the disk."""
        self.entries[entry.key] = entry
        self._append(entry)

    def _append(self, record: JournalHead | JournalEntry) -> None:
        os.write(self._descriptor, json.dumps(record.model_dump(mode="json"), separators=(",", ":")).encode() + b"\n")
        os.fsync(self._descriptor)


def _flat(head: JournalHead) -> dict[str, object]:
    return head.model_dump(exclude={"asked"}) | head.asked.model_dump()


@contextmanager
def open_journal(path: Path, head: JournalHead) -> Iterator[AnswerJournal]:
    """Begin the journal at `path`, or go on with it.

    Raises:
        ResourceError: it belongs to another run, is damaged, or is in use.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(f"{path}: another flagrelease process is writing it") from None
        yield AnswerJournal(path, head, descriptor)
    finally:
        os.close(descriptor)
