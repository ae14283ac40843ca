"""How likely tokens were: log-probabilities, ranks, and the tokens that were more likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.transfer import send

_ROWS = 256  # are scored at once: a piece of a prompt would need several copies of all its logits


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token and how likely it was after those before it.

    Attributes:
        logprob: its log-probability; None for a prompt's first token.
        top: the most likely tokens with their log-probabilities, best first.
        rank: its place among all tokens by probability, from 1; 0 for a prompt's first. The lower id comes first
            among equals, as where a token is chosen at temperature 0.
        begin, end: the characters of the generated text that hold a byte of it (see `TokenStream`).
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()
    rank: int = 0
    begin: int = 0
    end: int = 0


Rated = tuple[Tensor, Tensor, Tensor, Tensor]


def score(logits: Tensor, tokens: list[int], top: int) -> list[TokenScore]:
    """Scores of `tokens` under logits [T, V]: natural logarithms at temperature 1, whatever the sampling was."""
    ids = send(torch.tensor(tokens, dtype=torch.int64), logits.device)
    scores: list[TokenScore] = []
    for n in range(0, len(tokens), _ROWS):
        scores += token_scores(tokens[n : n + _ROWS], *rate(logits[n : n + _ROWS], ids[n : n + _ROWS], top))
    return scores


def rate(logits: Tensor, tokens: Tensor, top: int) -> Rated:
    """What `token_scores` reads, where the logits [T, V] are: nothing waits for the device.

    Returns:
        Of `tokens` [T] the log-probabilities and the ranks, [T]; of the most likely ones, best first, the ids and the
        log-probabilities, [T, top].
    """
    logits, ids = logits.float(), tokens[:, None]
    logp, own = logits.log_softmax(-1), logits.gather(-1, ids)
    earlier = torch.arange(logits.shape[-1], device=logits.device) < ids
    ranks = 1 + ((logits > own) | ((logits == own) & earlier)).sum(-1)
    best = _most_likely(logits, top)
    return logp.gather(-1, ids)[:, 0], ranks, best, logp.gather(-1, best)


def token_scores(tokens: Sequence[int], own: Tensor, ranks: Tensor, best: Tensor, values: Tensor) -> list[TokenScore]:
    """The scores that `rate` has computed. Their places in the text are not known here."""
    pairs = [tuple(zip(i, v, strict=True)) for i, v in zip(best.tolist(), values.tolist(), strict=True)]
    return [TokenScore(*each) for each in zip(tokens, own.tolist(), pairs, ranks.tolist(), strict=True)]


def _most_likely(logits: Tensor, count: int) -> Tensor:
    """Ids [T, count] of the largest float32 logits, best first, the lower id first among equals.

    `topk` orders equals as it likes, and keeps any of them. So it is given numbers of which no two are equal: the
    logit's bits, as an integer of the same order, above the id's.
    """
    bits = (logits + 0.0).view(torch.int32)  # + 0: of -0 and 0, which are equal, both become 0
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32
    last = logits.shape[-1] - 1
    ids = torch.arange(last, -1, -1, device=logits.device)
    return last - ((ordered | ids).topk(count, dim=-1).values & 0xFFFFFFFF)
