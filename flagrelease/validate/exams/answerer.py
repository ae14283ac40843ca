"""Who answers: what an answerer is asked, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from flagrelease.model.v4.efforts import Efforts
from flagrelease.records.rules import ChatMode, ExamKind
from flagrelease.validate.seeds import seed_of

Finish = Literal["stop", "length"]


class AskRules(Protocol):
    """How questions are put and answered: what the rules of a benchmark and those of the long contexts both say."""

    @property
    def title(self) -> str:
        """As people know the exam."""
        ...

    @property
    def kind(self) -> ExamKind:
        """The form of an answer."""
        ...

    @property
    def prompt(self) -> str:
        """The user's turn, with places for the parts of a question."""
        ...

    @property
    def mode(self) -> ChatMode:
        """How the model answers."""
        ...

    @property
    def temperature(self) -> float:
        """Of sampling; 0 is greedy."""
        ...

    @property
    def top_p(self) -> float:
        """Of sampling."""
        ...

    @property
    def max_tokens(self) -> int:
        """Of an answer with its reasoning."""
        ...

    @property
    def seed(self) -> int:
        """From which each answer's own is derived."""
        ...


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

    def answer(self, asks: Sequence[Ask], rules: AskRules) -> Iterator[tuple[Ask, Reply]]:
        """Answer all of `asks`, as `rules` say how, each as soon as it is there: the order is the answerer's.

        Raises:
            NetworkError: an endpoint does not answer, or not as its protocol says.
            UsageError: an ask does not fit the model.
        """
        ...


def derive_seed(rules: AskRules, item: str, repeat: int) -> int:
    """The seed of one answer under these rules."""
    return seed_of(rules.seed, rules.title, item, repeat)
