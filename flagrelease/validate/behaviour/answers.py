"""`Behaviour`: what is kept of a model's answers, without their text; saved by the machine that ran it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from flagrelease.durable.files import write_whole
from flagrelease.records.rules import BehaviourRules, Wish
from flagrelease.validate.recorded import read_recorded


def digest_of(tokens: Sequence[int]) -> str:
    """The SHA-256 of token ids, written in decimal with spaces."""
    return hashlib.sha256(" ".join(map(str, tokens)).encode()).hexdigest()


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Reply(_Strict):
    """One answer.

    Attributes:
        prompt: id of the prompt; `wish` is what it asks for.
        prompt_sha256: of the prompt's token ids (`digest_of`); None where a server tells only how many they
            are, which is `prompt_tokens`.
        finish: `length` where it was cut off.
        loops, broken: it ends in a loop; it breaks the chat format.
        granted: it has what was asked: text, a valid tool call, a JSON object.
        by_server: a server gave it, which takes answers apart by itself.
    """

    prompt: str
    repeat: int = Field(ge=0)
    wish: Wish
    prompt_sha256: str | None = Field(pattern="^[0-9a-f]{64}$")
    prompt_tokens: int = Field(ge=1)
    tokens: int = Field(ge=0)
    finish: Literal["stop", "length"]
    loops: bool
    broken: bool
    granted: bool
    by_server: bool = False


class BehaviourHead(_Strict):
    """Whose answers they are, and to what.

    Attributes:
        subject: what answered: a release by the SHA-256 of its manifest, or a checkpoint by its identity.
        stack: machine and software.
        prompts_sha256: of what was asked.
    """

    schema_version: Literal[1] = 1
    subject: str = Field(min_length=1)
    stack: str = Field(min_length=1)
    prompts_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    rules: BehaviourRules


class Behaviour(BehaviourHead):
    """All answers of one model, in the order of prompts and repeats."""

    answers: tuple[Reply, ...] = Field(min_length=1)

    def save(self, path: Path) -> None:
        """Write it as JSON; the file is absent or whole."""
        write_whole(path, self.model_dump_json(indent=1).encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> Behaviour:
        """The answers in `path`.

        Raises:
            UsageError: there are none.
            VerificationError: the file is not of this form.
        """
        return read_recorded(cls, path, "behaviour")
