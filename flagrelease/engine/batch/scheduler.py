"""Many sequences on one model: each has a row of the cache, joins when one is free, and leaves when it is done.

A step reads a piece of the prompts that wait, and gives a token to every sequence whose prompt is read (and one more
for each draft that was right). The piece is a budget of tokens, so that a long prompt delays running answers by that
and no more; it is larger where more prompts wait than answers run. Prompts are read in the order in which they came.

The device is one step ahead of the host. While it computes the logits of one step, whose tokens it has in its own
memory, the host takes in the tokens of the step before, makes their texts and decides which sequences have ended. One
that has ended by its text is in the step that was queued meanwhile: it gets a token there that nobody takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flagrelease.engine.batch.adjusted import Adjuster, adjusted
from flagrelease.engine.batch.admission import admit
from flagrelease.engine.batch.chosen import Chosen
from flagrelease.engine.batch.guessing import Guessing
from flagrelease.engine.batch.orders import Next
from flagrelease.engine.batch.prefixes import Prefixes
from flagrelease.engine.batch.reading import Piece, allowance, order_of, passes
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.sequence import Event, Generated, Running
from flagrelease.engine.batch.totals import Totals
from flagrelease.engine.batch.worth import Worth
from flagrelease.engine.sampling import Draws, Sampler, Sampling, choose_tokens
from flagrelease.engine.scores import TokenScore
from flagrelease.engine.stops import StopWatch
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.transfer import send


class Scheduler:
    """Runs on the leader; not thread-safe but for `check`. Call `step` while `busy`."""

    def __init__(
        self, runner: Runner, tokenizer: Tokenizer, budget: int | None = None, worth: Worth | None = None
    ) -> None:
        """Nothing runs yet.

        Args:
            runner: the model; if it has draft stages, they draft.
            tokenizer: the model's.
            budget: tokens of prompts that a step reads (see `allowance`); a chunk of the runner's if None.
            worth: says before each step whether drafting pays; None: it is done in every step.
        """
        self.runner, self.tokenizer = runner, tokenizer
        self._worth = worth if runner.speculate else None
        self._drafting = runner.speculate and worth is None
        self._guessing = Guessing(runner, self._choose)
        self.budget = runner.chunk if budget is None else budget
        self.totals = Totals()
        self._waiting = deque[Running]()
        self._active = dict[int, Running]()  # by row
        self._under_way: list[tuple[list[Running], Chosen]] = []  # tokens that the host has not taken in
        self._reading: Running | None = None  # of the active ones the one whose prompt is not all read
        self._keys = 0
        self._prefixes = Prefixes(runner)
        self._device: torch.device = runner.model.head.device

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
        return admit(prompt, sampling, self.runner.context, self.runner.model.config.vocab_size)

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
        """Queue a token for every sequence whose prompt is read, and take in those of the step before.

        If prompts wait, a step first takes in what is under way, so that nobody waits for it while the next step reads
        a budget of them. With drafts, of which the host decides how many are right, a step takes in its own tokens.
        """
        if self._worth is None:
            return self._step_with_drafts() if self._drafting else self._step_ahead()
        rows, read = sum(each.ready for each in self._active.values()), self.totals.prompt
        wanted = self._worth.wants(rows)
        if changed := wanted != self._drafting:
            events = self._begin_drafts() if wanted else self._pause_drafts()
        else:
            events = self._step_with_drafts() if wanted else self._step_ahead()
        calm = not changed and self._reading is None and self.totals.prompt == read
        self._worth.note(rows, self.totals.acceptance, drafting=wanted, calm=calm)
        return events

    def _step_ahead(self) -> list[Event]:
        """A step without drafts; the device is one ahead of the host."""
        if self._under_way and self._next_to_read() is not None:
            return self._take_in()
        events = self._read_prompts()
        going = [each for each in self._active.values() if 0 < each.sent < each.limit]
        logits = self.runner.run(Next(tuple(each.row for each in going))) if going else None
        events += self._take_in()
        going = [each for each in going if self._active.get(each.row) is each]
        if logits is not None and going:
            self._continue(going, logits[self._where(going), 0])
        return events

    def _continue(self, going: list[Running], logits: Tensor) -> None:
        """Queue the choice of a token for each of `going` from logits [N, V], and its way to the host."""
        draws = Draws.of([each.sampler.at(each.sent) for each in going], self._device)
        tokens = self._choose(logits, draws, [(each, 0) for each in going])
        self.runner.keep(self._where(going), tokens)
        tops = [each.sampling.logprobs for each in going]
        self._under_way.append((going, Chosen(self.runner.model.device, logits, tokens, tops)))
        for each in going:
            each.sent += 1

    def _where(self, sequences: Sequence[Running]) -> slice | Tensor:
        """Their rows, to index tensors on the device with."""
        rows = [each.row for each in sequences]
        if rows == list(range(rows[0], rows[0] + len(rows))):
            return slice(rows[0], rows[0] + len(rows))
        return send(torch.tensor(rows, dtype=torch.int64), self._device)

    def _take_in(self) -> list[Event]:
        """Wait for the tokens that are under way. Whoever was cancelled meanwhile is told nothing."""
        under_way, self._under_way = self._under_way, []
        return [
            self._advance(each, [token])
            for sequences, chosen in under_way
            for each, token in zip(sequences, chosen.wait(), strict=True)
            if self._active.get(each.row) is each
        ]

    def _step_with_drafts(self) -> list[Event]:
        """A token and its right drafts for every sequence that is ready, a budget of prompts read, the next drafts."""
        events = self._verify()
        events += self._read_prompts()
        events += self._take_in()
        self._draft()
        return events

    def _begin_drafts(self) -> list[Event]:
        """From steps without drafts to those with them: take in what is under way, and guess what comes next."""
        self._drafting = True
        events = self._take_in()
        self._draft()
        return events

    def _pause_drafts(self) -> list[Event]:
        """From steps with drafts to those without: a token for every sequence, from which the next step goes on.

        Its drafts are forgotten. The stages have read all that came before the token.
        """
        self._drafting = False
        for each in self._active.values():
            each.drafts, each.guessed = (), False
        events = self._verify()
        going = [each for each in self._active.values() if each.ready]
        if going:
            latest = torch.tensor([each.last for each in going], dtype=torch.int64)
            self.runner.keep(self._where(going), send(latest, self._device))
        for each in going:
            each.sent = each.generated
        return events

    def _verify(self) -> list[Event]:
        """A step of every sequence that is ready: its newest token, and drafts of the next ones if it has any."""
        events = list[Event]()
        for each, tokens, seen in self._guessing.verify(self._active):
            if seen is not None:
                each.acceptance += seen
                self.totals.acceptance += seen
            events.append(self._advance(each, tokens))
        return events

    def _draft(self) -> None:
        self._guessing.draft(self._active, self._where)

    def _read_prompts(self) -> list[Event]:
        """Read a budget of prompts and queue the first tokens of those that are read to the end.

        Returns the scores of prompts, and the ends of those that get no token.
        """
        events, begun = list[Event](), list[tuple[Running, Tensor]]()
        for pieces in passes(self._pieces(), self.runner.chunk):
            logits = self.runner.run(order_of(pieces))
            if pieces[0].is_scored:
                events += pieces[0].scores(logits)
            self.totals.prompt += sum(len(piece.tokens) for piece in pieces)
            for piece in pieces:
                self._prefixes.keep(piece)
            for piece, last in zip(pieces, logits[-len(pieces) :], strict=True):
                if piece.following is None and piece.each.limit == 0:
                    self._free(piece.each)
                    events.append(Event(piece.each.key, "", (), 0, "length"))
                elif piece.following is None:
                    begun.append((piece.each, last))
        if begun:
            self._continue([each for each, _ in begun], torch.stack([last for _, last in begun]))
        return events

    def _pieces(self) -> list[Piece]:
        """What this step reads; the sequences count it as read."""
        wait = min(len(self._waiting), self.runner.rows - len(self._active)) + (self._reading is not None)
        left = allowance(self.budget, wait, sum(each.sent > 0 for each in self._active.values()))
        pieces: list[Piece] = []
        while left and (each := self._next_to_read()) is not None:
            border = (each.read // self.runner.chunk + 1) * self.runner.chunk
            past = min(each.read + left, border)
            pieces.append(Piece(each, each.read, each.prompt[each.read : past]))
            left -= len(pieces[-1].tokens)
            each.read = pieces[-1].past
            if each.ready:
                self._reading = None
        return pieces

    def _next_to_read(self) -> Running | None:
        """The sequence whose prompt is being read, else the one that waits longest, if a row is free for it."""
        if self._reading is None and self._waiting and len(self._active) < self.runner.rows:
            self._reading = self._waiting.popleft()
            self._reading.row = next(row for row in range(self.runner.rows) if row not in self._active)
            self._active[self._reading.row] = self._reading
            self.totals.cached += self._prefixes.begin(self._reading)
        return self._reading

    def _advance(self, each: Running, tokens: Sequence[tuple[int, TokenScore | None]]) -> Event:
        before = each.generated
        event = each.advance(tokens, self.runner.model.config.eos_token_id)
        self.totals.generated += each.generated - before
        if event.finish is not None:
            self._free(each)
        return event

    def _choose(self, logits: Tensor, draws: Draws, places: Sequence[tuple[Running, int]]) -> Tensor:
        """A token for each row of logits [N, V]. `places`: its sequence, and how many tokens after the next it is."""
        asked = [(each.adjuster, each.feed[1 : 1 + ahead]) for each, ahead in places]
        return choose_tokens(self.runner.model.ops, adjusted(logits, asked), draws)

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
