"""Penalties on tokens that have come already, as OpenAI, vLLM and transformers define them.

`repetition_penalty` divides the logits above 0 of every token of the prompt and of the answer, and multiplies those
below 0. Then a token of the answer loses `frequency_penalty` for each time that it came, and `presence_penalty` once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flagrelease.engine.sampling import Sampling
from flagrelease.engine.transfer import send

Ids = NDArray[np.int64]
Values = NDArray[np.float32]


class TokenCounts:
    """How often each token has come in one answer; a token that only its prompt holds has come 0 times."""

    def __init__(self, prompt: Sequence[int]) -> None:
        """At the answer's beginning."""
        self._ids: Ids = np.unique(np.asarray(prompt, np.int64))
        self._counts: Values = np.zeros(len(self._ids), np.float32)
        self._places = {int(token): place for place, token in enumerate(self._ids)}

    def add(self, token: int) -> None:
        """`token` has come once more."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):  # grow by half, so that the arrays are copied seldom
            self._ids = np.concatenate([self._ids, np.zeros(place // 2 + 8, np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(place // 2 + 8, np.float32)])
        self._ids[place] = token
        self._counts[place] += 1

    def after(self, ahead: Sequence[int]) -> tuple[Ids, Values]:
        """Tokens and how often each has come, as if `ahead` had come too."""
        size = len(self._places)
        ids, counts = self._ids[:size], self._counts[:size]
        if not ahead:
            return ids, counts
        counts = counts.copy()
        fresh = dict.fromkeys(token for token in ahead if token not in self._places)
        for token in ahead:
            if token in self._places:
                counts[self._places[token]] += 1
        more = [ahead.count(token) for token in fresh]
        return np.concatenate([ids, np.array([*fresh], np.int64)]), np.concatenate([counts, np.array(more, np.float32)])


@dataclass(frozen=True, slots=True)
class Penalty:
    """What a row of logits is changed by.

    Attributes:
        ids: [K], each token once.
        factors: [K], of the repetition penalty.
        costs: [K], to be subtracted.
    """

    ids: Ids
    factors: Values
    costs: Values

    @classmethod
    def of(cls, sampling: Sampling, counts: tuple[Ids, Values]) -> Penalty:
        """By the parameters of a sequence and what has come in it."""
        ids, times = counts
        costs = sampling.frequency_penalty * times + sampling.presence_penalty * (times > 0)
        return cls(ids, np.full(len(ids), sampling.repetition_penalty, np.float32), costs.astype(np.float32))


def penalise(logits: Tensor, rows: Sequence[tuple[int, Penalty]]) -> None:
    """Change rows of float32 logits [N, V] in place, all of them at once."""
    if not rows:
        return
    on = logits.device
    row = send(torch.from_numpy(np.concatenate([np.full(len(each.ids), n, np.int64) for n, each in rows])), on)
    ids, factors, costs = (
        send(torch.from_numpy(np.concatenate(parts)), on)
        for parts in zip(*((each.ids, each.factors, each.costs) for _, each in rows), strict=True)
    )
    found = logits[row, ids]
    logits[row, ids] = torch.where(found > 0, found / factors, found * factors) - costs
