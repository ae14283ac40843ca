"""The folder of a baseline: what the native model gave, so that a chip's machine needs nothing else of it.

logits/                  the runs of the source (validate/logits/baseline.py)
continuations.json       texts that it wrote, and how likely it found their tokens
long-context/TOKENS.json  its answers to the questions about registers of one length
benchmarks/NAME.json     its answers to a benchmark, without questions
behaviour.json           its answers to the behaviour prompts, without texts
work/                    journals, needed only to resume, and the lock of the process that records here
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from flagrelease.durable.files import refused
from flagrelease.durable.folder import LOCK_NAME
from flagrelease.durable.lock import FileLock
from flagrelease.errors import UsageError, VerificationError

NO_BASELINE = "no baseline was given (--baseline; `flagrelease baseline record` makes one where the source runs)"


@dataclass(frozen=True, slots=True)
class BaselineFolder:
    """Where its parts are; each may be absent."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> BaselineFolder:
        """For reading.

        Raises:
            UsageError: no such folder, or nothing of a baseline in it.
        """
        opened = cls(folder)
        if not opened.parts():
            raise UsageError(
                f"{folder}: no baseline (no logits/, continuations.json, long-context/, benchmarks/ or behaviour.json "
                "of a finished recording)"
            )
        return opened

    def parts(self) -> list[str]:
        """Its finished parts: `logits`, `continuations`, `long-context/TOKENS`, `benchmarks/NAME`, `behaviour`."""
        answers = sorted(path.stem for path in self.benchmarks.glob("*.json"))
        lengths = sorted((path.stem for path in self.long_context.glob("*.json")), key=int)
        return [
            *(["logits"] if self.logits_record.is_file() else []),
            *(["continuations"] if self.continuations.is_file() else []),
            *(f"long-context/{length}" for length in lengths),
            *(f"benchmarks/{name}" for name in answers),
            *(["behaviour"] if self.behaviour.is_file() else []),
        ]

    @property
    def logits(self) -> Path:
        """The folder of the logits stage's part."""
        return self.folder / "logits"

    @property
    def logits_record(self) -> Path:
        """The file that says that part is whole."""
        return self.logits / "baseline.json"

    @property
    def continuations(self) -> Path:
        """Texts that the native model wrote."""
        return self.folder / "continuations.json"

    @property
    def long_context(self) -> Path:
        """The folder of answers to questions about long registers."""
        return self.folder / "long-context"

    def context_answers(self, length: int) -> Path:
        """To the questions in prompts of `length` tokens."""
        return self.long_context / f"{length}.json"

    @property
    def benchmarks(self) -> Path:
        """The folder of recorded answers."""
        return self.folder / "benchmarks"

    def answers(self, name: str) -> Path:
        """To the benchmark `name`."""
        return self.benchmarks / f"{name}.json"

    @property
    def behaviour(self) -> Path:
        """The answers to the behaviour prompts."""
        return self.folder / "behaviour.json"

    def locked(self) -> FileLock:
        """Make the folder and lock it for recording; use the lock as a context.

        Raises:
            ResourceError: another process records into the folder, or it cannot be written.
        """
        control = self.folder / "work"
        with refused(control):
            control.mkdir(parents=True, exist_ok=True)
        return FileLock(control / LOCK_NAME, self.folder)

    def work(self, name: str) -> Path:
        """A journal, while it is recorded."""
        return self.folder / "work" / f"{name}.jsonl"


def file_sha256(path: Path) -> str:
    """Of a file of the baseline or of a benchmark's data.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def subject_of_source(identity: str) -> str:
    """How recorded answers name the model that gave them; `identity` is the digest of a `SourceIdentity`."""
    return f"source {identity}"


def refuse_other_model(path: Path, subject: str, identity: str) -> None:
    """Refuse recorded answers that another model gave; another training step of the same model is another model.

    Raises:
        VerificationError: `subject` is not the source of `identity`.
    """
    if subject != subject_of_source(identity):
        raise VerificationError(
            f"{path}: answers of {subject}, but this release was made of {identity}: another model, another training "
            f"step, or a recording of an older flagrelease; record the baseline from the release's own source"
        )
