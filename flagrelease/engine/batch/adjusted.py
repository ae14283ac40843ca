"""Logits as they are changed before a token is chosen: `logit_bias`, and no end token under `min_tokens`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flagrelease.engine.sampling import Sampling


class Adjuster:
    """What one sequence asks to be changed. The scheduler tells it every token that the sequence has got."""

    def __init__(self, sampling: Sampling, eos: int) -> None:
        """At the end of the prompt. `eos`: the end token."""
        self._sampling, self._eos, self._taken = sampling, eos, 0

    def take(self, token: int) -> None:
        """The sequence has got its next token."""
        self._taken += 1

    @property
    def active(self) -> bool:
        """Whether the logits of the next token, or of the one after a draft, are changed."""
        return bool(self._sampling.logit_bias) or self._taken < self._sampling.min_tokens

    def change(self, row: Tensor, ahead: Sequence[int]) -> None:
        """Change float32 logits [V] in place: those of the token that follows the tokens taken and then `ahead`."""
        if self._sampling.logit_bias:
            tokens, values = zip(*self._sampling.logit_bias, strict=True)
            row[list(tokens)] += torch.tensor(values, device=row.device)
        if self._taken + len(ahead) < self._sampling.min_tokens:
            row[self._eos] = -torch.inf


Place = tuple[Adjuster, Sequence[int]]  # of a row of logits: its sequence, and a draft after which the token comes


def adjusted(logits: Tensor, places: Sequence[Place]) -> Tensor:
    """Logits [N, V] with what the sequences of their rows ask for; the same tensor if nobody asks for anything.

    Call it when all tokens before those places are taken; the logits may still be being computed on their device.
    """
    active = [(n, adjuster, ahead) for n, (adjuster, ahead) in enumerate(places) if adjuster.active]
    if active:
        logits = logits.float().clone()
    for n, adjuster, ahead in active:
        adjuster.change(logits[n], ahead)
    return logits
