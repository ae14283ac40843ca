"""Logits as they are changed before a token is chosen: bias, penalties, and tokens that may not be chosen now."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flagrelease.engine.batch.penalties import Penalty, TokenCounts, penalise
from flagrelease.engine.constraints.constraint import Follower, Words, masks
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.transfer import send


class Adjuster:
    """What one sequence asks to be changed. The scheduler tells it every token that the sequence has got.

    `ahead`, in all methods, is a draft: the question is for the token after it.

    Attributes:
        allowed: the only tokens that may be chosen; None: all.
        follower: what says which tokens may come next; None: nothing does.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], eos: int, vocabulary: int) -> None:
        """At the end of the prompt. `eos`: the end token; `vocabulary`: tokens that the model knows."""
        self._sampling, self._taken = sampling, list[int]()
        self._ends = (eos, *sampling.stop_token_ids)
        self._counts = TokenCounts(prompt if sampling.repetition_penalty != 1 else ()) if sampling.penalised else None
        allowed = sampling.allowed_token_ids
        self.allowed = None if allowed is None else pack(allowed, vocabulary)
        self.follower = None if sampling.constraint is None else Follower(sampling.constraint)
        lasting = (self._counts, self.allowed, self.follower)  # asked of every sequence in every step
        self._lasts = bool(sampling.logit_bias or sampling.bad_words) or any(each is not None for each in lasting)

    def take(self, token: int) -> None:
        """The sequence has got its next token."""
        self._taken.append(token)
        if self._counts is not None:
            self._counts.add(token)
        if self.follower is not None:
            self.follower.take(token)

    @property
    def broken(self) -> bool:
        """Whether the sequence ends because its constraint was given up."""
        return self.follower is not None and self.follower.broken

    @property
    def active(self) -> bool:
        """Whether the logits of the next token, or of the one after a draft, may be changed."""
        return self._lasts or len(self._taken) < self._sampling.min_tokens

    @property
    def bias(self) -> tuple[tuple[int, float], ...]:
        """What is added to the logits of which tokens."""
        return self._sampling.logit_bias

    def penalty(self, ahead: Sequence[int]) -> Penalty | None:
        """By the tokens so far."""
        return None if self._counts is None else Penalty.of(self._sampling, self._counts.after(ahead))

    def banned(self, ahead: Sequence[int]) -> list[int]:
        """Tokens that may not be chosen: an end that comes too early, the last token of a bad word that has begun."""
        goes_on = len(self._taken) + len(ahead) < self._sampling.min_tokens
        waits = self.follower is not None and self.follower.must_go_on(ahead)
        ends = self._ends if goes_on or waits else ()
        words = [word for word in self._sampling.bad_words if self._has_begun(word, ahead)]
        return [*ends, *(word[-1] for word in words)]

    def _has_begun(self, word: Sequence[int], ahead: Sequence[int]) -> bool:
        begun = len(word) - 1
        return begun == 0 or [*self._taken[-begun:], *ahead][-begun:] == list(word[:-1])


Place = tuple[Adjuster, Sequence[int]]  # of a row of logits: its sequence, and a draft after which the token comes


def adjusted(logits: Tensor, places: Sequence[Place]) -> Tensor:
    """Logits [N, V] with what the sequences of their rows ask for; the same tensor if nobody asks for anything.

    Call it when all tokens before those places are taken; the logits may still be being computed on their device.
    Where bans leave none of the allowed tokens, the bans do not hold.
    """
    active = [(n, adjuster, ahead) for n, (adjuster, ahead) in enumerate(places) if adjuster.active]
    if not active:
        return logits
    logits = logits.float().clone()
    _add(logits, [(n, token, value) for n, adjuster, _ in active for token, value in adjuster.bias])
    penalties = [(n, adjuster.penalty(ahead)) for n, adjuster, ahead in active]
    penalise(logits, [(n, penalty) for n, penalty in penalties if penalty is not None])
    allowed = {n: adjuster.allowed for n, adjuster, _ in active}
    following = [(n, adjuster.follower, ahead) for n, adjuster, ahead in active if adjuster.follower is not None]
    found = masks([(follower, ahead) for _, follower, ahead in following], logits.shape[1])
    allowed |= {n: words for (n, _, _), words in zip(following, found, strict=True)}
    bans, kept = list[tuple[int, int]](), list[tuple[int, Words]]()
    for n, adjuster, ahead in active:
        banned, words = adjuster.banned(ahead), allowed[n]
        if words is None:
            bans += [(n, token) for token in banned]
        else:
            kept.append((n, _without(words, banned)))
    if bans:
        row, token = send(torch.tensor(bans), logits.device).unbind(-1)
        logits[row, token] = -torch.inf
    _mask(logits, kept)
    return logits


def pack(tokens: Sequence[int], vocabulary: int) -> Words:
    """The bits of `tokens`."""
    bits = np.zeros(-(-vocabulary // 32) * 32, np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)


def _without(allowed: Words, banned: Sequence[int]) -> Words:
    left = allowed.copy().view(np.uint32)
    for token in banned:
        left[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)
    return left.view(np.int32) if left.any() else allowed


def _add(logits: Tensor, values: Sequence[tuple[int, int, float]]) -> None:
    if values:
        row, token, value = zip(*values, strict=True)
        place = send(torch.tensor([row, token]), logits.device).unbind(0)
        logits.index_put_(place, send(torch.tensor(value), logits.device), accumulate=True)


def _mask(logits: Tensor, kept: Sequence[tuple[int, Words]]) -> None:
    """Words [V / 32] of some rows are copied to the device, and unpacked there."""
    if not kept:
        return
    rows = send(torch.tensor([n for n, _ in kept]), logits.device)
    words = send(torch.from_numpy(np.stack([words for _, words in kept])), logits.device)
    bits = words[:, :, None] >> torch.arange(32, dtype=torch.int32, device=logits.device) & 1
    keep = bits.flatten(1)[:, : logits.shape[1]].bool()
    logits[rows] = logits[rows].masked_fill(~keep, -torch.inf)
