"""One sequence on its way: what is left of its prompt, what it has become, and what each step brings to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from flagrelease.engine.batch.acceptance import NO_DRAFTS, Acceptance
from flagrelease.engine.batch.adjusted import Adjuster
from flagrelease.engine.sampling import Sampler, Sampling
from flagrelease.engine.scores import TokenScore
from flagrelease.engine.stops import StopWatch
from flagrelease.engine.text import TokenStream

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Event:
    """What one step brought to one sequence.

    Attributes:
        key: the sequence.
        text: to be appended.
        scores: of the tokens of which `text` shows the first character, and of those without text up to its end, if
            logprobs were asked for. A token of which a stop string left nothing is never told of.
        generated: tokens so far, a final EOS included.
        finish: why it ended, at its last event: EOS or a stop string, or a length limit.
        acceptance: what became of drafts so far.
        tokens: the tokens of this step, a final EOS included.
        stopped_by: the stop string that ended it, if one did.
        prompt_scores: of the prompt's tokens that were read in this step, if they were asked for.
        cached: tokens of the prompt that were not read, for what a row remembers of them was kept.
    """

    key: int
    text: str
    scores: tuple[TokenScore, ...]
    generated: int
    finish: Finish | None
    acceptance: Acceptance = NO_DRAFTS
    tokens: tuple[int, ...] = ()
    stopped_by: str | None = None
    prompt_scores: tuple[TokenScore, ...] = ()
    cached: int = 0


@dataclass(slots=True)
class Generated:
    """A finished sequence: text without EOS and stop strings; the numbers are those of its last event.

    `scores` begin with the prompt's, if those were asked for.
    """

    text: str = ""
    scores: list[TokenScore] = field(default_factory=list)
    generated: int = 0
    finish: Finish = "length"
    acceptance: Acceptance = NO_DRAFTS

    def add(self, event: Event) -> None:
        """Append what a step brought."""
        self.text += event.text
        self.scores += (*event.prompt_scores, *event.scores)
        self.generated, self.acceptance = event.generated, event.acceptance
        self.finish = event.finish or self.finish

    @property
    def drafted(self) -> int:
        """Drafts that were verified."""
        return self.acceptance.drafts

    @property
    def accepted(self) -> int:
        """Those that were right."""
        return self.acceptance.right


@dataclass(slots=True)
class Running:
    """One sequence.

    Attributes:
        read: tokens of the prompt that the model has seen.
        cached: those of them that another sequence has read.
        borders: where the prompt is cut, with digests of what comes before (see `Prefixes`).
        keep_at: the border at which what the row remembers is kept; 0: at none.
        last: the newest token, which it has not.
        sent: tokens chosen for it on the device; the host has taken in `generated` of them.
        drafts: guesses of the next ones that are to be verified.
        guessed: whether the draft stages were asked for guesses since the last step.
        followed: the tokens of the last step, which the draft stages have not seen.
        rejected: drafts that the cache holds and that were wrong.
        said: characters of the text that events have told.
        unsaid: scores of the tokens of which nothing was told yet: a stop string or a character has begun in them.
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
    cached: int = 0
    borders: dict[int, bytes] = field(default_factory=dict)
    keep_at: int = 0
    last: int = -1
    sent: int = 0
    generated: int = 0
    drafts: tuple[int, ...] = ()
    guessed: bool = False
    followed: tuple[int, ...] = ()
    rejected: int = 0
    acceptance: Acceptance = NO_DRAFTS
    said: int = 0
    unsaid: deque[TokenScore] = field(default_factory=deque)

    @property
    def ready(self) -> bool:
        """Whether the prompt is read."""
        return self.read == len(self.prompt)

    @property
    def feed(self) -> tuple[int, ...]:
        """What a decode step gives to it."""
        if not self.ready:
            return ()
        return (self.last, *self.drafts)

    def advance(self, tokens: Sequence[tuple[int, TokenScore | None]], eos: int) -> Event:
        """Take in the next tokens, with their scores where it asks for them, up to the one that ends the sequence."""
        text, finish, count = "", None, 0
        places: list[tuple[int, int]] = []
        while finish is None and count < len(tokens):
            piece, finish = self._take(tokens[count][0], eos, places)
            text, count = text + piece, count + 1
        self.followed, self.drafts = tuple(token for token, _ in tokens[:count]), ()
        if finish is not None:
            text += self.watch.push(self.tokens.rest()) + self.watch.rest()
        self.said += len(text)
        scores = self._scores(places, [score for _, score in tokens[:count] if score is not None])
        stopped_by = self.watch.stopped_by if finish == "stop" else None
        return Event(
            self.key, text, scores, self.generated, finish, self.acceptance, self.followed, stopped_by,
            cached=self.cached,
        )  # fmt: skip

    def _scores(self, places: Sequence[tuple[int, int]], new: Sequence[TokenScore]) -> tuple[TokenScore, ...]:
        """What can be told now. The newest tokens have `places` in the text, and scores if they were asked for."""
        if self.sampling.logprobs is None:
            return ()
        self.unsaid += [replace(one, begin=begin, end=end) for one, (begin, end) in zip(new, places, strict=True)]
        told: list[TokenScore] = []
        while self.unsaid and self.unsaid[0].begin < self.said + (self.unsaid[0].begin == self.unsaid[0].end):
            told.append(self.unsaid.popleft())
        return tuple(told)

    def _take(self, token: int, eos: int, places: list[tuple[int, int]]) -> tuple[str, Finish | None]:
        self.last, self.generated = token, self.generated + 1
        self.adjuster.take(token)
        ends = (token == eos and not self.sampling.ignore_eos) or token in self.sampling.stop_token_ids
        if ends or token == eos:
            piece, place = "", (self.tokens.length, self.tokens.length)
        else:
            piece, place = self.tokens.push(token), (self.tokens.begin, self.tokens.end)
        places.append(place)
        if ends:
            return "", "length" if self.adjuster.broken else "stop"
        text = piece if self.generated <= self.sampling.min_tokens else self.watch.push(piece)
        if self.watch.stopped:
            return text, "stop"
        return text, "length" if self.generated == self.limit else None
