"""One sequence on its way: what is left of its prompt, what it has become, and what each step brings to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from flagrelease.engine.batch.adjusted import Adjuster
from flagrelease.engine.sampling import Sampler, Sampling, TokenScore, score
from flagrelease.engine.text import StopWatch, TokenStream

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Event:
    """What one step brought to one sequence.

    Attributes:
        key: the sequence.
        text: to be appended.
        scores: of the tokens of this step (with `echo` the prompt's, at the first), if logprobs were asked for.
        generated: tokens so far, a final EOS included.
        finish: why it ended, at its last event: EOS or a stop string, or a length limit.
        drafted: tokens guessed by the MTP stage so far.
        accepted: those of them that were the model's own choice.
        stopped_by: the stop string that ended it, if one did.
    """

    key: int
    text: str
    scores: tuple[TokenScore, ...]
    generated: int
    finish: Finish | None
    drafted: int = 0
    accepted: int = 0
    stopped_by: str | None = None


@dataclass(slots=True)
class Generated:
    """A finished sequence: text without EOS and stop strings; the numbers are those of its last event."""

    text: str = ""
    scores: list[TokenScore] = field(default_factory=list)
    generated: int = 0
    finish: Finish = "length"
    drafted: int = 0
    accepted: int = 0

    def add(self, event: Event) -> None:
        """Append what a step brought."""
        self.text += event.text
        self.scores += event.scores
        self.generated, self.drafted, self.accepted = event.generated, event.drafted, event.accepted
        self.finish = event.finish or self.finish


@dataclass(slots=True)
class Running:
    """One sequence.

    Attributes:
        read: tokens of the prompt that the model has seen.
        last: the newest token, which it has not.
        draft: a guess of the next one.
        followed: the tokens of the last step, which the MTP stage has not seen.
        rejected: the cache holds a draft that was wrong.
    """

    key: int
    prompt: tuple[int, ...]
    sampling: Sampling
    limit: int
    sampler: Sampler
    adjuster: Adjuster
    tokens: TokenStream
    watch: StopWatch
    row: int = -1
    read: int = 0
    last: int = -1
    generated: int = 0
    draft: int | None = None
    followed: tuple[int, ...] = ()
    rejected: bool = False
    drafted: int = 0
    accepted: int = 0
    scores: list[TokenScore] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Whether the prompt is read."""
        return self.read == len(self.prompt)

    @property
    def feed(self) -> tuple[int, ...]:
        """What a decode step gives to it."""
        if not self.ready:
            return ()
        return (self.last,) if self.draft is None else (self.last, self.draft)

    def advance(self, tokens: Sequence[int], logits: Tensor, eos: int) -> Event:
        """Take in the next tokens, chosen from logits [.., V], up to the one that ends the sequence."""
        text, finish, count = "", None, 0
        while finish is None and count < len(tokens):
            piece, finish = self._take(tokens[count], eos)
            text, count = text + piece, count + 1
        if self.sampling.logprobs is not None:
            self.scores += score(logits[:count], list(tokens[:count]), self.sampling.logprobs)
        scores, self.scores = tuple(self.scores), []
        self.followed, self.draft = tuple(tokens[:count]), None
        if finish is not None:
            text += self.watch.push(self.tokens.rest()) + self.watch.rest()
        stopped_by = self.watch.stopped_by if finish == "stop" else None
        return Event(self.key, text, scores, self.generated, finish, self.drafted, self.accepted, stopped_by)

    def _take(self, token: int, eos: int) -> tuple[str, Finish | None]:
        self.last, self.generated = token, self.generated + 1
        self.adjuster.take(token)
        if (token == eos and not self.sampling.ignore_eos) or token in self.sampling.stop_token_ids:
            return "", "stop"
        piece = "" if token == eos else self.tokens.push(token)
        text = piece if self.generated <= self.sampling.min_tokens else self.watch.push(piece)
        if self.watch.stopped:
            return text, "stop"
        return text, "length" if self.generated == self.limit else None
