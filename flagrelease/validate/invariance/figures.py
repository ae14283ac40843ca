"""`figures` of the invariance stage: what was measured in each circumstance, and what it was compared with."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from flagrelease.records.report import PartVerdict

Kind = Literal["floor", "circumstance", "variant", "lengths"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PartedText(_Strict):
    """A text that is not the one it is compared with: where, and by how many nats the token there was ahead."""

    prompt: str
    at: int
    margin: float | None
    parting: Literal["near tie", "clear margin", "unknown margin"]


class CircumstanceFigures(_Strict):
    """One row of the matrix.

    Attributes:
        name: of the circumstance; `against` which one its answers are compared with.
        kind: `floor`: the same circumstance twice. `lengths`: nothing is compared, the answers must be right.
        texts: pairs of answers; of them `same` are equal, `ties` part at a near tie, `clear` at a clear margin and
            `unknown` where nobody told the margin.
        mean_difference, largest_difference: of log-probabilities of shared tokens, in nats; None: not told.
        tokens: shared ones with log-probabilities on both sides.
        right, asked: questions to registers that were answered rightly here.
        cached: tokens of prompts that the server said it had read before.
        parted: the texts that are not equal.
        verdict: with the reason.
    """

    name: str
    against: str
    kind: Kind
    texts: int = Field(ge=0)
    same: int = Field(ge=0)
    ties: int = Field(ge=0)
    clear: int = Field(ge=0)
    unknown: int = Field(ge=0)
    tokens: int = Field(ge=0)
    mean_difference: float | None
    largest_difference: float | None
    right: int = Field(ge=0)
    asked: int = Field(ge=0)
    cached: int = Field(ge=0)
    parted: tuple[PartedText, ...] = ()
    verdict: PartVerdict
    why: str


class LengthFigures(_Strict):
    """Questions to the register of one length, alone: how many tokens the prompts had, and how many were right."""

    tokens: int
    right: int
    asked: int


class InvarianceFigures(_Strict):
    """All of it.

    Attributes:
        server: which one is the main one, without anything secret; `variants` by name.
        requests, prompt_tokens, tokens: what the stage cost.
        mean_limit, largest_limit, same_limit: what decided, floors included.
    """

    server: str
    variants: dict[str, str]
    requests: int
    prompt_tokens: int
    tokens: int
    mean_limit: float
    largest_limit: float
    same_limit: float
    tie: float
    circumstances: tuple[CircumstanceFigures, ...]
    lengths: tuple[LengthFigures, ...]
