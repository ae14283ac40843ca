"""Answers to a file of prompts, a JSON line each, written as they finish: what was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from flagrelease.engine.sampling import Sampling
from flagrelease.engine.serve.sequence import Generated
from flagrelease.errors import UsageError


def request_digest(prompt: Sequence[int], sampling: Sampling, answerer: str) -> str:
    """What an answer is the answer to: 16 hexadecimal digits of the prompt's tokens, the sampling and who answers."""
    asked = [list(prompt), sampling.temperature, sampling.top_p, sampling.seed, sampling.max_tokens, answerer]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def answer_document(prompt: Sequence[int], generated: Generated) -> dict[str, Any]:
    """An answer as `generate` shows it. The drafts' numbers are there where there were any."""
    document = {
        "text": generated.text,
        "finish_reason": generated.finish,
        "prompt_tokens": len(prompt),
        "generated_tokens": generated.generated,
    }
    if not generated.drafted:
        return document
    return {**document, "drafted_tokens": generated.drafted, "accepted_tokens": generated.accepted}


class AnswerFile:
    """A file that grows by whole lines. Use it as a context."""

    def __init__(self, path: Path, digests: Sequence[str]) -> None:
        """Read what is there; `digests` are those of all requests, in their order.

        A last line without its end is what a kill left behind; it is cut off.

        Raises:
            UsageError: the file holds answers to something else, or anything but answers.
        """
        self._path, self._digests = path, digests
        try:
            held = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        self._whole = held.rfind(b"\n") + 1
        lines = held[: self._whole].split(b"\n")[:-1]  # a line ends at a line feed only
        self.finished: set[int] = {self._index(number, line) for number, line in enumerate(lines, 1)}

    def _index(self, number: int, line: bytes) -> int:
        """The request that a line answers."""
        try:
            document = json.loads(line)
            index, digest = document["index"], document["request"]
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{self._path}: line {number} is no answer of this command") from error
        if type(index) is not int or index not in range(len(self._digests)) or digest != self._digests[index]:
            raise UsageError(
                f"{self._path}: line {number} answers another prompt, or the same with other sampling, numerics or "
                "another model: "
                "give another file"
            )
        return int(index)

    def __enter__(self) -> AnswerFile:
        """Open it for more.

        Raises:
            UsageError: it cannot be written.
        """
        try:
            self._file: TextIO = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{self._path}: {error.strerror}") from error
        os.truncate(self._path, self._whole)
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self._file.close()

    def add(self, index: int, document: dict[str, Any]) -> None:
        """Write an answer; from then on a kill of the process does not lose it."""
        line = {"index": index, "request": self._digests[index], **document}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
