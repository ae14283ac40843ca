"""What is asked: how long the prompts and answers are, and how many at once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ScenarioName = Literal["chat", "long", "context"]

_WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
    "question", "work", "government", "number", "night", "point", "home", "water", "room", "mother", "area", "money",
    "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue", "side",
)  # fmt: skip
_INSTRUCTION = "Continue this list of words for as long as you can:"


@dataclass(frozen=True, slots=True)
class ScenarioRow:
    """One row of the result: requests of one size, `concurrency` at once."""

    scenario: ScenarioName
    prompt_tokens: int
    answer_tokens: int
    concurrency: int


def plan_rows(
    scenarios: Sequence[ScenarioName],
    concurrency: Sequence[int],
    contexts: Sequence[int],
    answer_tokens: int,
    chat_tokens: int,
    long_tokens: int,
) -> list[ScenarioRow]:
    """The rows of the scenarios.

    chat: short prompts, over all concurrencies. long: long prompts, the same. context: one request at a time, with
    prompts of each length in `contexts`.
    """
    rows = {
        "chat": [ScenarioRow("chat", chat_tokens, answer_tokens, at_once) for at_once in concurrency],
        "long": [ScenarioRow("long", long_tokens, answer_tokens, at_once) for at_once in concurrency],
        "context": [ScenarioRow("context", length, answer_tokens, 1) for length in contexts],
    }
    return [row for name in scenarios for row in rows[name]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many tokens the server counts: `template` for any prompt, and `per_word` of ours."""

    template: float
    per_word: float

    @classmethod
    def fit(cls, few: tuple[int, int], many: tuple[int, int]) -> Sizes:
        """From two prompts, each (words, tokens)."""
        per_word = (many[1] - few[1]) / (many[0] - few[0])
        return cls(few[1] - few[0] * per_word, per_word)

    def words(self, tokens: int) -> int:
        """Words of a prompt of about that many tokens; at least one."""
        return max(1, round((tokens - self.template) / self.per_word))


def write_prompt(words: int, seed: int) -> str:
    """A text that begins like no other seed's, so that no server has any of it in a prefix cache."""
    chance = random.Random(seed)
    return " ".join([f"{chance.randrange(10**9)}.", _INSTRUCTION, *(chance.choice(_WORDS) for _ in range(words))])
