"""`Continuations`: texts that the native model sampled, and how likely it found each of their tokens."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flagrelease.durable.files import write_whole
from flagrelease.records.rules import WritingRules
from flagrelease.validate.recorded import read_recorded


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Continuation(_Strict):
    """One text.

    Attributes:
        name: of the document that it continues.
        prompt: token ids of the document's beginning; `answer`: of what the model wrote, its end token included.
        logp: log-probabilities of the answer's tokens at temperature 1, all read at once after they were written.
    """

    name: str = Field(min_length=1)
    prompt: tuple[int, ...] = Field(min_length=1)
    answer: tuple[int, ...] = Field(min_length=1)
    logp: tuple[float, ...]

    @model_validator(mode="after")
    def _every_token_is_scored(self) -> Continuation:
        if len(self.logp) != len(self.answer):
            raise ValueError(f"{len(self.logp)} log-probabilities for {len(self.answer)} tokens")
        return self

    @property
    def tokens(self) -> tuple[int, ...]:
        """The prompt and what follows it."""
        return (*self.prompt, *self.answer)


class ContinuationsHead(_Strict):
    """Whose texts they are.

    Attributes:
        subject: what wrote: a checkpoint by its identity; `stack` is its machine and software.
        documents_sha256: of the names and beginnings that were continued.
    """

    schema_version: int = Field(1, ge=1, le=1)
    subject: str = Field(min_length=1)
    stack: str = Field(min_length=1)
    documents_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    rules: WritingRules


class Continuations(ContinuationsHead):
    """All texts of one model."""

    texts: tuple[Continuation, ...] = Field(min_length=1)

    def save(self, path: Path) -> None:
        """Write it as JSON; the file is absent or whole."""
        write_whole(path, self.model_dump_json().encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> Continuations:
        """The texts in `path`.

        Raises:
            UsageError: there are none.
            VerificationError: the file is not of this form.
        """
        return read_recorded(cls, path, "continuations")
