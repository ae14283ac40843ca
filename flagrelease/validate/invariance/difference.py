"""What two answers to the same greedy request have in common, and where they part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict


class SaidToken(BaseModel):
    """A token of an answer.

    Attributes:
        text: as the server shows it.
        logprob: its log-probability, in nats.
        margin: how far the likeliest token was ahead of the second, in nats; None: the server did not tell.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    text: str
    logprob: float
    margin: float | None


class Said(BaseModel):
    """An answer in one circumstance.

    Attributes:
        prompt_tokens, answer_tokens, cached_tokens: as the server counted them; cached are those of the prompt that it
            had read before.
        tokens: empty where the server gives no log-probabilities.
        no_numbers: how many of those it gave are NaN or infinite; `tokens` is empty then too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    circumstance: str
    prompt: str
    text: str
    prompt_tokens: int
    answer_tokens: int
    cached_tokens: int = 0
    tokens: tuple[SaidToken, ...] = ()
    no_numbers: int = 0


Parting = Literal["none", "near tie", "clear margin", "unknown margin"]


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two answers.

    Attributes:
        prompt: what was asked.
        parting: whether the texts part, and how sure the answers were where they do.
        at: tokens before that; `margin` there of the answer that was surer, in nats. Noise turns near ties only, and
            what it has turned is a near tie again.
        apart: of each shared token, how far its two log-probabilities are apart, in nats.
    """

    prompt: str
    parting: Parting
    at: int
    margin: float | None
    apart: tuple[float, ...]


def difference(first: Said, second: Said, tie: float) -> Difference:
    """Compare two answers to one prompt; less than `tie` nats is a near tie."""
    assert first.prompt == second.prompt, "answers to different prompts"
    shared = _shared(first.tokens, second.tokens)
    pairs = zip(first.tokens[:shared], second.tokens[:shared], strict=True)
    apart = tuple(abs(one.logprob - other.logprob) for one, other in pairs)
    if first.text == second.text:
        return Difference(first.prompt, "none", shared, None, apart)
    # Where one ends before the other, servers do not list its end token: the other's next one is what is known.
    there = [said.tokens[shared].margin for said in (first, second) if shared < len(said.tokens)]
    margin = max((each for each in there if each is not None), default=None)
    parting: Parting = "unknown margin" if margin is None else "near tie" if margin < tie else "clear margin"
    return Difference(first.prompt, parting, shared, margin, apart)


def _shared(first: Sequence[SaidToken], second: Sequence[SaidToken]) -> int:
    """Tokens that both begin with."""
    for n, (one, other) in enumerate(zip(first, second, strict=False)):
        if one.text != other.text:
            return n
    return min(len(first), len(second))
