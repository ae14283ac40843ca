"""Rules of the long-context stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flagrelease.records.rules.strict import ChatMode, Strict

_Depth = Annotated[float, Field(ge=0, le=100)]


class LongContextRules(Strict):
    """What is retrieved from how long a context, and the tests that decide. Rates and margin are in points of 100.

    A cell is a length and a depth; its `items` questions are about as many different registers. At the defaults a
    side reads 13 million tokens, or a fifth of them where the server keeps the prefix of questions about one register.

    Attributes:
        form: `register`: sentences, and an answer in the model's own words that ends in a box; `ledger`: bare rows of
            three words, at most 64, for a model that was taught to read nothing else (examples/tiny).
        lengths: of a whole prompt in tokens of the model's own tokenizer, exactly; with `max_tokens` behind it a
            prompt must fit the model's positions.
        depths: where in the register the entry with the answer stands, in percent of its entries: 0 is the first.
        items: questions in a cell.
        hops: entries that a question leads through, the one with the answer counted.
        mode, temperature, top_p, max_tokens: how the model answers, once to each question.
        seed: of the registers, and of answers that are sampled.
        margin: largest drop, over all cells, that still counts as aligned.
        alpha: chance that a port exactly `margin` worse passes, and that a sound one is said to lose a cell.
        most_truncated: above this rate of answers that are cut off at `max_tokens` there is no verdict where the native
            side does it, and no pass where the release does.
    """

    form: Literal["register", "ledger"] = "register"
    lengths: tuple[Annotated[int, Field(ge=16)], ...] = Field((4096, 16384, 65536, 131072), min_length=1)
    depths: tuple[_Depth, ...] = Field((0, 25, 50, 75, 100), min_length=1)
    items: int = Field(12, ge=1)
    hops: int = Field(2, ge=1, le=4)
    mode: ChatMode = "chat"
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(512, ge=1)
    seed: int = Field(0, ge=0)
    margin: float = Field(5.0, gt=0, lt=100)
    alpha: float = Field(0.05, gt=0, lt=0.5)
    most_truncated: float = Field(2.0, ge=0, le=100)

    @model_validator(mode="after")
    def _in_order(self) -> LongContextRules:
        for name, values in (("lengths", self.lengths), ("depths", self.depths)):
            if list(values) != sorted(set(values)):
                raise ValueError(f"{name} must increase")
        return self
