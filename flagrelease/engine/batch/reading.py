"""How prompts are read: how much of them in a step, which pieces, and which of those in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flagrelease.engine.batch.orders import Prefill, Together
from flagrelease.engine.batch.sequence import Event, Running
from flagrelease.engine.scores import TokenScore, score

_MOST_BUDGETS = 16  # that one step reads, however many prompts wait
_MANY = 8  # answers for each prompt that waits, from which pieces are shorter
_SHORTEST = 64  # tokens of such a piece: with fewer a pass still reads most experts, and takes about as long
_PASS = 4  # chunks that one pass reads of several rows, their padding included
_TOLD = 64  # scores of a prompt in an event: who writes them has other answers to write in between


def allowance(budget: int, wait: int, run: int) -> int:
    """Tokens of prompts that a step reads.

    A budget; and more of them where more prompts have a row and `wait` than answers `run`, which that delays. Where
    answers are many times as many as prompts, less: a power of two, for passes have such sizes.
    """
    if run > _MANY * wait:
        return min(budget, max(_SHORTEST, _power_below(budget * _MANY * max(wait, 1) // run)))
    return budget * min(max(wait // max(run, 1), 1), _MOST_BUDGETS)


def _power_below(n: int) -> int:
    """The largest power of two up to n; 0 for 0."""
    return 1 << (n.bit_length() - 1) if n else 0


@dataclass(frozen=True, slots=True)
class Piece:
    """The tokens of a prompt from `begin` on that one pass reads."""

    each: Running
    begin: int
    tokens: tuple[int, ...]

    @property
    def past(self) -> int:
        """Where the next piece begins."""
        return self.begin + len(self.tokens)

    @property
    def following(self) -> int | None:
        """The prompt's token after the piece; None at its end."""
        return None if self.past == len(self.each.prompt) else self.each.prompt[self.past]

    @property
    def is_scored(self) -> bool:
        """Whether its tokens' log-probabilities are wanted."""
        return self.each.sampling.prompt_scores is not None

    @property
    def order(self) -> Prefill:
        """What ranks do."""
        return Prefill(self.each.row, self.tokens, self.begin == 0, self.following, self.is_scored)

    def scores(self, logits: Tensor) -> list[Event]:
        """What is told of its tokens, given the logits after each of them, [T, V]."""
        top = self.each.sampling.prompt_scores
        assert top is not None, "nobody asked"
        known = [*self.tokens[1:], *([] if self.following is None else [self.following])]
        scores = [TokenScore(self.tokens[0], None)] if self.begin == 0 else []
        scores += score(logits[: len(known)], known, top)
        return [
            Event(self.each.key, "", (), 0, None, prompt_scores=tuple(scores[n : n + _TOLD]))
            for n in range(0, len(scores), _TOLD)
        ]


def passes(pieces: Sequence[Piece], chunk: int) -> list[list[Piece]]:
    """The pieces in their order, as one pass after the other reads them.

    Rows that lie side by side are read together: a pass of few tokens waits for the host, and takes as long as one of
    many. Shorter pieces are padded to the longest, so they share a pass where at least half of it is theirs.
    """
    made: list[list[Piece]] = []
    for piece in pieces:
        if made and _fits(made[-1], piece, chunk):
            made[-1].append(piece)
        else:
            made.append([piece])
    return made


def _fits(begun: Sequence[Piece], piece: Piece, chunk: int) -> bool:
    lengths = [len(each.tokens) for each in (*begun, piece)]
    padded = len(lengths) * max(lengths)
    side_by_side = begun[-1].each.row + 1 == piece.each.row
    scored = piece.is_scored or begun[-1].is_scored
    return side_by_side and not scored and padded <= min(_PASS * chunk, 2 * sum(lengths))


def order_of(pieces: Sequence[Piece]) -> Prefill | Together:
    """What ranks do for a pass."""
    return pieces[0].order if len(pieces) == 1 else Together(tuple(piece.order for piece in pieces))
