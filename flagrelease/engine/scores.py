"""How likely tokens were: log-probabilities, ranks, and the tokens that were more likely."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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


def score(logits: Tensor, tokens: list[int], top: int) -> list[TokenScore]:
    """Scores of `tokens` under logits [T, V]: natural logarithms at temperature 1, whatever the sampling was."""
    scores: list[TokenScore] = []
    for n in range(0, len(tokens), _ROWS):
        scores += _score(logits[n : n + _ROWS].float(), tokens[n : n + _ROWS], top)
    return scores


def _score(logits: Tensor, tokens: list[int], top: int) -> list[TokenScore]:
    ids = torch.tensor(tokens, dtype=torch.int64, device=logits.device)[:, None]
    logp, own = logits.log_softmax(-1), logits.gather(-1, ids)
    earlier = torch.arange(logits.shape[-1], device=logits.device) < ids
    ranks = 1 + ((logits > own) | ((logits == own) & earlier)).sum(-1)
    best = _most_likely(logits, top)
    pairs = [tuple(zip(i, v, strict=True)) for i, v in zip(best.tolist(), logp.gather(-1, best).tolist(), strict=True)]
    own_logp = logp.gather(-1, ids)[:, 0].tolist()
    return [TokenScore(*each) for each in zip(tokens, own_logp, pairs, ranks.tolist(), strict=True)]


def _most_likely(logits: Tensor, count: int) -> Tensor:
    """Ids [T, count] of the largest logits, best first, the lower id first among equals. `topk` orders equals as it
    likes, and keeps any of them."""
    size = logits.shape[-1]
    values, ids = logits.topk(min(count + 1, size), dim=-1)
    ids, by_id = ids.sort(dim=-1)
    values, by_value = values.gather(-1, by_id).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, by_value)
    if 0 < count < size:
        tied = values[:, count - 1] == values[:, count]
        if tied.any():
            ids[tied] = logits[tied].sort(dim=-1, descending=True, stable=True).indices[:, : count + 1]
    return ids[:, :count]
