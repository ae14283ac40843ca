"""Rules of the behaviour stage."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from flagrelease.records.rules.strict import ChatMode, Strict

Wish = Literal["text", "tool", "json"]  # what a prompt asks for
WISHES: tuple[Wish, ...] = get_args(Wish)


class BehaviourRules(Strict):
    """How the behaviour stage asks its prompts, and how much more often than the native model a port may misbehave.

    Attributes:
        mode: how the model answers, as of a benchmark.
        wishes: which kinds of prompts are asked: for text, for a tool call, for JSON. A model that was never taught a
            kind fails it on both sides, which tells nothing.
        prompts: of each kind, at most: the first ones.
        temperature, top_p: of the sampling. At temperature 0 an answer is always the same, so it can be asked for once.
        repeats: answers to each prompt.
        seed: from which each answer's own is derived.
        max_tokens: of an answer with its reasoning.
        margin: largest excess over the native model's rate that still counts as aligned, in points of 100: of answers
            that loop, are cut off, break the chat format, miss the asked tool call or the asked JSON.
        alpha: chance that a port exactly `margin` worse passes.
    """

    mode: ChatMode = "chat"
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=4096, ge=1)
    wishes: tuple[Wish, ...] = Field(default=WISHES, min_length=1)
    prompts: int = Field(default=16, ge=1)
    repeats: int = Field(default=8, ge=1)
    seed: int = Field(default=0, ge=0)
    margin: float = Field(default=10.0, gt=0, lt=100)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)

    @model_validator(mode="after")
    def _repeats_differ(self) -> BehaviourRules:
        if self.temperature == 0 and self.repeats > 1:
            raise ValueError(
                f"temperature 0 gives the same answer {self.repeats} times, which would be counted as {self.repeats} "
                "answers: set repeats to 1, or a temperature above 0"
            )
        return self
