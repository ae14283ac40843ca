"""Rules of the invariance stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flagrelease.records.rules.strict import Strict


class InvarianceRules(Strict):
    """How often the same greedy request is sent, and how far its answers may be from each other.

    Attributes:
        texts: prompts without a register, at most: the first ones.
        form: of the registers, as in the long-context stage.
        lengths: tokens of the registers, at least; a border of a server's chunks should lie
            between two of them.
        questions: to each register; they share all that comes before.
        max_tokens: of an answer.
        top: alternatives that are asked for with each token.
        concurrency: requests at once, one circumstance each.
        tie: where the likeliest token is less than so many nats ahead, another one is a near tie and no fault.
        same: share of the texts that must be equal, or as many as without any change of circumstance.
        mean_difference: of log-probabilities of the tokens that both answers share, in nats.
        largest_difference: of them, likewise.
        floors: what repeating the same circumstance gives, so many times, is the limit where that is more.
        right: share of the questions to the shortest register that must be answered rightly, or lengths show nothing.
        lost: share of questions that a longer register may lose against it.
    """

    texts: int = Field(default=6, ge=1)
    form: Literal["register", "ledger"] = "register"
    lengths: tuple[Annotated[int, Field(ge=16)], ...] = Field(
        default=(1000, 2040, 2200, 4080, 4400, 8180, 8800), min_length=1
    )
    questions: int = Field(default=2, ge=1)
    max_tokens: int = Field(default=128, ge=1)
    top: int = Field(default=5, ge=2)
    concurrency: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(4, 16), min_length=1)
    tie: float = Field(default=0.5, gt=0)
    same: float = Field(default=0.75, ge=0, le=1)
    mean_difference: float = Field(default=0.05, gt=0)
    largest_difference: float = Field(default=1.0, gt=0)
    floors: float = Field(default=3.0, ge=1)
    right: float = Field(default=0.5, gt=0, le=1)
    lost: float = Field(default=0.25, ge=0, lt=1)

    @model_validator(mode="after")
    def _in_order(self) -> InvarianceRules:
        for name, values in (("lengths", self.lengths), ("concurrency", self.concurrency)):
            if list(values) != sorted(set(values)):
                raise ValueError(f"{name} must increase")
        return self
