"""Many sequences on one model: each has a row of the cache, joins when one is free, and leaves when it is done.

A step is one token for every sequence whose prompt is read (two where a draft was right), then a piece of the prompts
that wait, at most `budget` tokens of them: a long prompt delays running answers by that much and no more. Prompts are
read in the order in which they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.batch.adjusted import Adjuster, adjusted
from flagrelease.engine.batch.orders import Decode, Draft, Prefill
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.sequence import Event, Generated, Running
from flagrelease.engine.sampling import Choice, Draws, Sampler, Sampling, choose
from flagrelease.engine.scores import TokenScore, score
from flagrelease.engine.stops import StopWatch
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import UsageError


@dataclass(slots=True)
class Totals:
    """Tokens since the scheduler was made: prompts read, generated, and how many of those were drafted right."""

    prompt: int = 0
    generated: int = 0
    drafted: int = 0
    accepted: int = 0


class Scheduler:
    """Runs on the leader; not thread-safe but for `check`. Call `step` while `busy`."""

    def __init__(self, runner: Runner, tokenizer: Tokenizer, budget: int | None = None) -> None:
        """`budget`: tokens of prompts that a step reads at most; a chunk of the runner's if None."""
        self.runner, self.tokenizer = runner, tokenizer
        self.budget = runner.chunk if budget is None else budget
        self.totals = Totals()
        self._waiting = deque[Running]()
        self._active = dict[int, Running]()  # by row
        self._reading: Running | None = None  # of the active ones the one whose prompt is not all read
        self._keys = 0

    @property
    def busy(self) -> bool:
        """Whether any sequence is not done."""
        return bool(self._waiting or self._active)

    @property
    def waiting(self) -> int:
        """Sequences without a row."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Sequences with one."""
        return len(self._active)

    def check(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """How many tokens the sequence may get.

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
            raise UsageError(
                f"a prompt of {len(prompt)} tokens and {max(limit, 0)} more for the answer: the context is {context}"
            )
        sampling.check_tokens(vocabulary)
        if sampling.min_tokens > limit:
            raise UsageError(f"min_tokens {sampling.min_tokens}: the answer may have {limit}")
        for count in (sampling.logprobs, sampling.prompt_logprobs):
            if count is not None and count > vocabulary:
                raise UsageError(f"{count} log-probabilities of each token: the vocabulary has {vocabulary}")
        return limit

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Queue a sequence; returns its key.

        Raises:
            UsageError: as `check`.
        """
        limit = self.check(prompt, sampling)
        self._keys += 1
        tokens, watch = self.tokenizer.stream(), StopWatch(sampling.stop)
        config = self.runner.model.config
        adjuster = Adjuster(sampling, prompt, config.eos_token_id, config.vocab_size)
        new = Running(self._keys, tuple(prompt), sampling, limit, Sampler(sampling), adjuster, tokens, watch)
        self._waiting.append(new)
        return new.key

    def cancel(self, key: int) -> None:
        """Forget a sequence: nobody waits for it. One that is done or unknown is no error: it may just have ended."""
        self._waiting = deque(each for each in self._waiting if each.key != key)
        for each in [each for each in self._active.values() if each.key == key]:
            self._free(each)

    def step(self) -> list[Event]:
        """A token or two for every sequence that is ready, a budget of prompts read, the next drafts."""
        events = self._decode()
        events += self._read_prompts()
        if self.runner.speculate:
            self._draft()
        return events

    def _decode(self) -> list[Event]:
        ready = [each for each in self._active.values() if each.ready]
        if not ready:
            return []
        rejected = tuple(each.row for each in ready if each.rejected)
        feeds = tuple(self._active[row].feed if row in self._active else () for row in range(self.runner.rows))
        places = [(each, n) for each in ready for n in range(len(each.feed))]
        draws = self._draws([each.sampler.at(each.generated + n) for each, n in places])
        index = torch.tensor([[each.row, n] for each, n in places], dtype=torch.int64, device=self._device).unbind(-1)
        logits = self.runner.run(Decode(feeds, rejected))
        chosen = self._choose(logits[index], draws, places)
        tokens: dict[int, list[int]] = {each.row: [] for each in ready}
        for (each, _), token in zip(places, chosen, strict=True):
            tokens[each.row].append(token)
        return [self._judge(each, tokens[each.row], logits[each.row]) for each in ready]

    def _judge(self, each: Running, tokens: list[int], logits: Tensor) -> Event:
        """The first token is right. The second is if the draft, after which it was chosen, was the first."""
        each.rejected = each.draft is not None and tokens[0] != each.draft
        if each.draft is not None:
            each.drafted += 1
            self.totals.drafted += 1
            each.accepted += not each.rejected
            self.totals.accepted += not each.rejected
        return self._advance(each, tokens[:1] if each.rejected else tokens, logits)

    def _read_prompts(self) -> list[Event]:
        events, left = [], self.budget
        while left and (each := self._next_to_read()) is not None:
            piece = each.prompt[each.read : each.read + min(left, self.runner.chunk)]
            left -= len(piece)
            events += self._read(each, piece)
        return events

    def _next_to_read(self) -> Running | None:
        """The sequence whose prompt is being read, else the one that waits longest, if a row is free for it."""
        if self._reading is None and self._waiting and len(self._active) < self.runner.rows:
            self._reading = self._waiting.popleft()
            self._reading.row = next(row for row in range(self.runner.rows) if row not in self._active)
            self._active[self._reading.row] = self._reading
        return self._reading

    def _read(self, each: Running, piece: tuple[int, ...]) -> list[Event]:
        """Read a piece, which may be scored; at the prompt's end comes the first token."""
        past = each.read + len(piece)
        following = None if past == len(each.prompt) else each.prompt[past]
        top = each.sampling.prompt_scores
        logits = self.runner.run(Prefill(each.row, piece, each.read == 0, following, top is not None))
        events: list[Event] = []
        if top is not None:
            known = [*piece[1:], *([] if following is None else [following])]
            scores = [TokenScore(piece[0], None)] if each.read == 0 else []
            scores += score(logits[: len(known)], known, top)
            events.append(Event(each.key, "", (), 0, None, prompt_scores=tuple(scores)))
        each.read = past
        self.totals.prompt += len(piece)
        if following is not None:
            return events
        self._reading = None
        if each.limit == 0:
            self._free(each)
            return [*events, Event(each.key, "", (), 0, "length")]
        (token,) = self._choose(logits[-1:], self._draws([each.sampler.at(0)]), [(each, 0)])
        return [*events, self._advance(each, [token], logits[-1:])]

    def _advance(self, each: Running, tokens: Sequence[int], logits: Tensor) -> Event:
        before = each.generated
        event = each.advance(tokens, logits, self.runner.model.config.eos_token_id)
        self.totals.generated += each.generated - before
        if event.finish is not None:
            self._free(each)
        return event

    def _draft(self) -> None:
        """Guess the next token of every sequence that has gone on and may get two more."""
        going = [each for each in self._active.values() if each.followed and each.limit - each.generated > 1]
        if not going:
            return
        following = {each.row: each.followed for each in going}
        draws = self._draws([each.sampler.at(each.generated) for each in going])
        rows = torch.tensor(list(following), dtype=torch.int64, device=self._device)
        logits = self.runner.run(Draft(tuple(following.get(row, ()) for row in range(self.runner.rows))))
        drafts = self._choose(logits[rows], draws, [(each, 0) for each in going])
        for each, draft in zip(going, drafts, strict=True):
            each.draft, each.followed = draft, ()

    def _choose(self, logits: Tensor, draws: Draws, places: Sequence[tuple[Running, int]]) -> list[int]:
        """A token for each row of logits [N, V]. `places`: its sequence, and how many tokens after the next it is."""
        return choose(adjusted(logits, [(each.adjuster, each.feed[1 : 1 + ahead]) for each, ahead in places]), draws)

    def _draws(self, choices: Sequence[Choice]) -> Draws:
        return Draws.of(choices, self._device)

    @property
    def _device(self) -> torch.device:
        return self.runner.model.head.device

    def _free(self, each: Running) -> None:
        del self._active[each.row]
        if self._reading is each:
            self._reading = None


Request = tuple[Sequence[int], Sampling]


def generate_each(scheduler: Scheduler, requests: Sequence[Request]) -> Iterator[tuple[int, Generated]]:
    """Continue several prompts together; each with its place in `requests`, as they finish."""
    places = {scheduler.submit(prompt, sampling): place for place, (prompt, sampling) in enumerate(requests)}
    growing = {key: Generated() for key in places}
    while scheduler.busy:
        for event in scheduler.step():
            growing[event.key].add(event)
            if event.finish:
                yield places[event.key], growing.pop(event.key)


def generate_all(scheduler: Scheduler, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Generated]:
    """Continue several prompts together, as many at once as there are rows; results in their order."""
    finished = dict(generate_each(scheduler, [(prompt, sampling) for prompt in prompts]))
    return [finished[place] for place in range(len(prompts))]
