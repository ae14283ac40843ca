"""Tokens that were chosen on the device, and their way to the host while the device goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.device import Device
from flagrelease.engine.scores import TokenScore, rate, token_scores
from flagrelease.engine.transfer import send


@dataclass(frozen=True, slots=True)
class _Rated:
    """Some of the tokens, `places` among all, whose scores with the same number of alternatives are fetched."""

    places: list[int]
    parts: tuple[Callable[[], Tensor], ...]


class Chosen:
    """One token for each row of logits. Everything is queued at once; only `wait` waits.

    Attributes:
        tokens: int64 [N], on the device.
    """

    def __init__(self, device: Device, logits: Tensor, tokens: Tensor, tops: Sequence[int | None]) -> None:
        """Begin to fetch `tokens`, chosen from `logits` [N, V].

        Args:
            device: theirs.
            logits: may be overwritten by what is queued later.
            tokens: int64 [N].
            tops: for each, how many alternatives are reported beside it; None: no score.
        """
        self.tokens = tokens
        self._fetched = device.fetch(tokens)
        places: dict[int, list[int]] = {}
        for n, top in enumerate(tops):
            if top is not None:
                places.setdefault(top, []).append(n)
        self._rated = [self._rate(device, logits, top, which) for top, which in places.items()]

    def _rate(self, device: Device, logits: Tensor, top: int, places: list[int]) -> _Rated:
        tokens = self.tokens
        if len(places) < len(tokens):
            index = send(torch.tensor(places, dtype=torch.int64), tokens.device)
            logits, tokens = logits[index], tokens[index]
        return _Rated(places, tuple(device.fetch(part) for part in rate(logits, tokens, top)))

    def wait(self) -> list[tuple[int, TokenScore | None]]:
        """The tokens, with their scores where they were asked for."""
        tokens: list[int] = self._fetched().tolist()
        scores: list[TokenScore | None] = [None] * len(tokens)
        for rated in self._rated:
            found = token_scores([tokens[n] for n in rated.places], *(part() for part in rated.parts))
            for n, score in zip(rated.places, found, strict=True):
                scores[n] = score
        return list(zip(tokens, scores, strict=True))
