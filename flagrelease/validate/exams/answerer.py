"""Who answers: what an answerer is asked, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from flagrelease.model.v4.efforts import Efforts
from flagrelease.records.rules import BenchmarkRules
from flagrelease.validate.seeds import seed_of

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer that is wanted. `prompt` is the user's turn, `seed` that of this answer alone."""

    item: str
    repeat: int
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    Attributes:
        text: after the reasoning.
        reasoned: whether there was reasoning, finished or not.
        prompt_tokens: of the whole prompt, chat format included. Unequal ones on two sides show unequal prompts.
        tokens: generated, the reasoning included.
        whole_sha256: of reasoning and text: repeats with the same one are the same answer again.
    """

    text: str
    reasoned: bool
    prompt_tokens: int
    tokens: int
    finish: Finish
    whole_sha256: str


class Answerer(Protocol):
    """A model that answers."""

    @property
    def stack(self) -> str:
        """Machine and software, for the reader of the report."""
        ...

    @property
    def efforts(self) -> Efforts:
        """What the model that answers makes of a mode."""
        ...

    def answer(self, asks: Sequence[Ask], rules: BenchmarkRules) -> Iterator[tuple[Ask, Reply]]:
        """Answer all of `asks`, as `rules` say how, each as soon as it is there: the order is the answerer's.

        Raises:
            NetworkError: an endpoint does not answer, or not as its protocol says.
            UsageError: an ask does not fit the model.
        """
        ...


def derive_seed(rules: BenchmarkRules, item: str, repeat: int) -> int:
    """The seed of one answer under these rules."""
    return seed_of(rules.seed, rules.title, item, repeat)
