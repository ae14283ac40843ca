"""Many sequences on one model: each has a row of the cache, joins when one is free, and leaves when it is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from flagrelease.engine.runner import Order, Runner
from flagrelease.engine.sampling import Sampler, Sampling, TokenScore, score
from flagrelease.engine.text import StopWatch, Tokenizer, TokenStream
from flagrelease.errors import UsageError

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
    """

    key: int
    text: str
    scores: tuple[TokenScore, ...]
    generated: int
    finish: Finish | None


@dataclass(slots=True)
class _Running:
    key: int
    prompt: tuple[int, ...]
    sampling: Sampling
    limit: int
    sampler: Sampler
    tokens: TokenStream
    watch: StopWatch
    row: int = -1
    last: int = -1
    generated: int = 0


@dataclass(slots=True)
class Scheduler:
    """Runs on the leader; not thread-safe. Call `step` while `busy`."""

    runner: Runner
    tokenizer: Tokenizer
    _waiting: deque[_Running] = field(default_factory=deque)
    _active: dict[int, _Running] = field(default_factory=dict)
    _freed: list[int] = field(default_factory=list)
    _keys: int = 0

    @property
    def busy(self) -> bool:
        """Whether any sequence is not done."""
        return bool(self._waiting or self._active)

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Queue a sequence; returns its key.

        Raises:
            UsageError: an empty prompt, a token the model does not have, or more tokens than the context holds.
        """
        context, vocabulary = self.runner.context, self.runner.model.config.vocab_size
        room = context - len(prompt)
        if not prompt:
            raise UsageError("an empty prompt")
        if any(not 0 <= token < vocabulary for token in prompt):
            raise UsageError(f"a token id outside the vocabulary of {vocabulary}")
        limit = room if sampling.max_tokens is None else sampling.max_tokens
        if room < 0 or limit > room:
            raise UsageError(f"{len(prompt)} tokens and {max(limit, 0)} more: the context is {context}")
        if sampling.logprobs is not None and sampling.logprobs > vocabulary:
            raise UsageError(f"logprobs {sampling.logprobs}: the vocabulary has {vocabulary}")
        self._keys += 1
        sampler, watch = Sampler(sampling), StopWatch(sampling.stop)
        self._waiting.append(
            _Running(self._keys, tuple(prompt), sampling, limit, sampler, self.tokenizer.stream(), watch)
        )
        return self._keys

    def cancel(self, key: int) -> None:
        """Forget a sequence: nobody waits for it. One that is done or unknown is no error: it may just have ended."""
        self._waiting = deque(each for each in self._waiting if each.key != key)
        for row in [row for row, each in self._active.items() if each.key == key]:
            self._free(row)

    def step(self) -> list[Event]:
        """One call of the model: the next waiting prompt if a row is free, else one token for every active sequence."""
        if self._waiting and len(self._active) < self.runner.rows:
            return [self._admit(self._waiting.popleft())]
        feed = tuple(self._active[row].last if row in self._active else None for row in range(self.runner.rows))
        logits = self.runner.run(Order(freed=self._take_freed(), feed=feed))
        return [self._advance(each, logits[row], ()) for row, each in sorted(self._active.items())]

    def _admit(self, new: _Running) -> Event:
        new.row = next(row for row in range(self.runner.rows) if row not in self._active)
        self._active[new.row] = new
        every = new.sampling.echo and new.sampling.logprobs is not None
        logits = self.runner.run(Order(freed=self._take_freed(), prompt=(new.row, new.prompt, every)))
        scores: list[TokenScore] = []
        if every:
            assert new.sampling.logprobs is not None
            first = TokenScore(new.prompt[0], None)
            scores = [first, *score(logits[:-1], list(new.prompt[1:]), new.sampling.logprobs)]
        if new.limit == 0:
            self._free(new.row)
            return Event(new.key, "", tuple(scores), 0, "length")
        return self._advance(new, logits[-1], tuple(scores))

    def _advance(self, each: _Running, logits: Tensor, scores: tuple[TokenScore, ...]) -> Event:
        """Choose the next token; end the sequence if it is the last."""
        token = each.sampler.pick(logits)
        each.last, each.generated = token, each.generated + 1
        if each.sampling.logprobs is not None:
            scores += tuple(score(logits[None], [token], each.sampling.logprobs))
        ended = token == self.runner.model.config.eos_token_id
        text = "" if ended else each.watch.push(each.tokens.push(token))
        finish: Finish | None = None
        if ended or each.watch.stopped:
            finish = "stop"
        elif each.generated == each.limit:
            finish = "length"
        if finish:
            text += each.watch.push(each.tokens.rest()) + each.watch.rest()
            self._free(each.row)
        return Event(each.key, text, scores, each.generated, finish)

    def _free(self, row: int) -> None:
        del self._active[row]
        self._freed.append(row)

    def _take_freed(self) -> tuple[int, ...]:
        freed, self._freed = tuple(self._freed), []
        return freed


@dataclass(slots=True)
class Generated:
    """A finished sequence: text without EOS and stop strings."""

    text: str = ""
    scores: list[TokenScore] = field(default_factory=list)
    generated: int = 0
    finish: Finish = "length"

    def add(self, event: Event) -> None:
        """Append what a step brought."""
        self.text += event.text
        self.scores += event.scores
        self.generated = event.generated
        self.finish = event.finish or self.finish


def generate_all(scheduler: Scheduler, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Generated]:
    """Continue several prompts together, as many at once as there are rows; results in their order."""
    results = {scheduler.submit(prompt, sampling): Generated() for prompt in prompts}
    while scheduler.busy:
        for event in scheduler.step():
            results[event.key].add(event)
    return list(results.values())
