"""Answers to a file of prompts, a JSON line each, written as they finish; a run that was killed is resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flagrelease.durable.lines import LineFile
from flagrelease.engine.json_line import json_line
from flagrelease.engine.sampling import Sampling
from flagrelease.errors import UsageError
from flagrelease.records.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from flagrelease.engine.batch.sequence import Generated


def request_digest(prompt: Sequence[int], sampling: Sampling, answerer: str) -> str:
    """What an answer is the answer to: 16 hexadecimal digits of the prompt's tokens, the sampling and who answers."""
    asked = [list(prompt), sampling.temperature, sampling.top_p, sampling.seed, sampling.max_tokens, answerer]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def answerer(release: Path, numerics: str, dtype: str) -> str:
    """Which model answers, and in which numerics. A checkpoint has no manifest and is known by its place."""
    manifest = release / MANIFEST_NAME
    model = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else str(release.resolve())
    return f"{model} {numerics} {dtype}"


def count_answers(path: Path, digests: Sequence[str]) -> int:
    """How many of the requests, of which `digests` are given in their order, a file answers; it need not be there.

    Raises:
        UsageError, ResourceError: as `AnswerFile`.
    """
    if not path.exists():
        return 0
    with AnswerFile(path, digests) as file:
        return len(file.finished)


def complete(path: Path, count: int) -> str:
    """What is said of a file that has all answers."""
    there = "the answer is" if count == 1 else f"all {count} answers are"
    return f"{path}: {there} there already, nothing to do"


def resuming(path: Path, finished: int, missing: int) -> str:
    """What is said of a file that has some answers."""
    there = "1 answer is there" if finished == 1 else f"{finished} answers are there"
    return f"{path}: resuming, {there} and {missing} {'is' if missing == 1 else 'are'} to come"


def answer_document(prompt: Sequence[int], generated: Generated) -> dict[str, Any]:
    """An answer as `generate` shows it. The drafts' numbers are there where there were any."""
    document = {
        "text": generated.text,
        "finish_reason": generated.finish,
        "prompt_tokens": len(prompt),
        "generated_tokens": generated.generated,
    }
    if not generated.acceptance.verifications:
        return document
    counts = {"drafted_tokens": generated.drafted, "accepted_tokens": generated.accepted}
    return {**document, **counts, "drafts": generated.acceptance.document()}


_START = b'{"index": '


class AnswerFile:
    """The file of answers: a JSON document a line, locked against other processes. Use it as a context."""

    def __init__(self, path: Path, digests: Sequence[str]) -> None:
        """Open the file and read what is there; `digests` are those of all requests, in their order.

        What a kill left behind, a torn or damaged end after whole answers, is cut.

        Raises:
            UsageError: the file holds answers to something else, or anything but answers.
            ResourceError: the file is in use by another process, or cannot be written.
        """
        self._digests = digests
        self._file = LineFile(path, _START)
        try:
            self.finished = self._read()
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> set[int]:
        finished: set[int] = set()
        whole = 0
        for number, line in enumerate(self._file.lines, 1):
            index = self._index(number, line)
            if index is None:
                if number == 1:
                    raise UsageError(f"{self._file.path}: line 1 is no answer of this command")
                break
            finished.add(index)
            whole = number
        self._file.keep(whole)
        return finished

    def _index(self, number: int, line: bytes) -> int | None:
        """The request that a line answers; None for a damaged line."""
        try:
            document = json.loads(line)
            index, digest = document["index"], document["request"]
        except (ValueError, TypeError, KeyError):
            return None
        if type(index) is not int or index not in range(len(self._digests)) or digest != self._digests[index]:
            raise UsageError(
                f"{self._file.path}: line {number} answers another prompt, or the same with other sampling, numerics "
                "or another model: give another file"
            )
        return int(index)

    def __enter__(self) -> AnswerFile:
        """Use as a context: the file is closed at its end."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file and give the lock back."""
        self._file.close()

    def add(self, index: int, document: dict[str, Any]) -> None:
        """Write an answer; from then on a kill of the process does not lose it.

        Raises:
            ResourceError: the disk is full, or refuses otherwise.
        """
        line = {"index": index, "request": self._digests[index], **document}
        self._file.append(json_line(line).encode(), sync=False)
