"""Choosing the next token from logits."""

from __future__ import annotations

import hashlib
import math
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flagrelease.engine.constraints.constraint import Constraint
from flagrelease.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_FIELDS = 7  # of a choice, as `Draws.of` sends them
_MOST = 2**31 - 1


class SamplingError(UsageError):
    """One parameter of a sampling cannot be. `name` is that parameter."""

    def __init__(self, name: str, problem: str) -> None:
        """The message begins with the name."""
        super().__init__(f"{name}{problem}")
        self.name = name


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a sequence is continued.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: sample from the fewest tokens whose probabilities reach this sum.
        seed: the same seed, prompt and logits give the same text; None: another text every time.
        max_tokens: None: as many as the context allows.
        stop: the text ends before the first of these.
        logprobs: None, or how many of the most likely tokens to report beside each chosen one.
        echo: report the prompt's tokens too.
        min_tokens: the end token is not chosen, and no stop string ends the text, before so many.
        ignore_eos: the end token does not end the sequence; it has no text.
        top_k: sample from the most likely so many tokens, and those as likely as the last of them; 0: from all.
        logit_bias: what is added to the logits of these tokens before one is chosen; scores are told without it.
        prompt_logprobs: None, or how many of the most likely tokens to report beside each of the prompt's.
        min_p: sample from the tokens that are at least this share as likely as the most likely one.
        frequency_penalty: what a token's logit loses for each time that the answer holds it.
        presence_penalty: what the logit of each token in the answer loses.
        repetition_penalty: what a logit of each token in prompt and answer is divided by where it is above 0, and
            multiplied with where it is below.
        stop_token_ids: tokens that end the sequence, and have no text.
        allowed_token_ids: None, or the only tokens that may be chosen.
        bad_words: runs of tokens whose last one is not chosen behind the others in the answer.
        constraint: None, or what the answer must be. Other wishes give way where they leave it no token.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    min_tokens: int = 0
    ignore_eos: bool = False
    top_k: int = 0
    min_p: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        """Refuse values without meaning.

        Raises:
            SamplingError: names the parameter.
            UsageError: a parameter contradicts the constraint.
        """
        rules = {
            "temperature": math.isfinite(self.temperature) and self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "max_tokens": self.max_tokens is None or self.max_tokens >= 0,
            "stop": all(self.stop),
            "min_tokens": self.min_tokens >= 0,
            "top_k": self.top_k >= 0,
            "min_p": 0 <= self.min_p <= 1,
            "logprobs": self.logprobs is None or self.logprobs >= 0,
            "frequency_penalty": -2 <= self.frequency_penalty <= 2,
            "presence_penalty": -2 <= self.presence_penalty <= 2,
            "repetition_penalty": 0 < self.repetition_penalty < math.inf,
            "allowed_token_ids": self.allowed_token_ids is None or bool(self.allowed_token_ids),
            "bad_words": all(self.bad_words),
            "prompt_logprobs": self.prompt_logprobs is None or self.prompt_logprobs >= 0,
        }
        for name, holds in rules.items():
            if not holds:
                raise SamplingError(name, f" {getattr(self, name)!r} is out of range")
        if self.constraint is not None and (self.ignore_eos or self.allowed_token_ids is not None):
            name = "ignore_eos" if self.ignore_eos else "allowed_token_ids"
            raise UsageError(f"{name} cannot be combined with an answer that must follow a grammar")

    @property
    def prompt_scores(self) -> int | None:
        """How many of the most likely tokens are found beside each of the prompt's; None: the prompt is not scored."""
        asked = (self.prompt_logprobs, self.logprobs if self.echo else None)
        return max((count for count in asked if count is not None), default=None)

    @property
    def penalised(self) -> bool:
        """Whether tokens that have come are less likely, or more."""
        return bool(self.frequency_penalty or self.presence_penalty or self.repetition_penalty != 1)

    def check_tokens(self, vocabulary: int) -> None:
        """Refuse tokens that the model does not have.

        Raises:
            SamplingError: names the parameter.
        """
        named = {
            "logit_bias": [token for token, _ in self.logit_bias],
            "stop_token_ids": self.stop_token_ids,
            "allowed_token_ids": self.allowed_token_ids or (),
            "bad_words": [token for word in self.bad_words for token in word],
        }
        for name, tokens in named.items():
            if any(not 0 <= token < vocabulary for token in tokens):
                raise SamplingError(name, f": a token id outside the vocabulary of {vocabulary}")


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice to be made: `keys` are 64 bits that decide it, in two signed words."""

    temperature: float
    top_p: float
    keys: tuple[int, int]
    top_k: int = 0
    min_p: float = 0.0


class Sampler:
    """One sequence's choices. The n-th depends on the seed, n and the logits: on no batch, no device and no draft."""

    def __init__(self, sampling: Sampling) -> None:
        """Seeded by `sampling.seed`, else by the system."""
        self._sampling = sampling
        self._seed = secrets.randbits(64) if sampling.seed is None else sampling.seed

    def at(self, n: int) -> Choice:
        """The choice of the sequence's n-th new token, from 0."""
        digest = hashlib.blake2b(f"{self._seed}/{n}".encode(), digest_size=8).digest()
        first, second = struct.unpack("<ii", digest)
        ours = self._sampling
        return Choice(ours.temperature, ours.top_p, (first, second), ours.top_k, ours.min_p)


@dataclass(frozen=True, slots=True)
class Draws:
    """Choices as tensors on a device, made before the logits are there so that nothing waits between the two.

    Attributes:
        drawn: int64 [n], the rows that are not greedy; None if all are.
        temperature: [n, 1].
        top_p: [n, 1]; None if no row cuts anything off.
        keys: int32 [n, 2].
        top_k: int64 [n, 1]; None if no row cuts anything off.
        min_p: [n, 1], natural logarithms; None if no row cuts anything off.
    """

    drawn: Tensor | None
    temperature: Tensor
    top_p: Tensor | None
    keys: Tensor
    top_k: Tensor | None = None
    min_p: Tensor | None = None

    @classmethod
    def of(cls, choices: Sequence[Choice], device: torch.device) -> Draws:
        """One choice for each row of the logits, in one copy to `device` that waits for nothing there."""
        import torch

        from flagrelease.engine.transfer import send

        drawn = [(n, choice) for n, choice in enumerate(choices) if choice.temperature > 0]
        packed = np.empty((_FIELDS, len(drawn)), dtype=np.int32)
        packed[0] = [n for n, _ in drawn]
        packed[1:3] = np.array([choice.keys for _, choice in drawn], dtype=np.int32).reshape(-1, 2).T
        packed[3] = [min(choice.top_k, _MOST) for _, choice in drawn]
        reals = packed[4:].view(np.float32)
        temperatures, top_p = [choice.temperature for _, choice in drawn], [choice.top_p for _, choice in drawn]
        min_p = [math.log(choice.min_p) if choice.min_p else -math.inf for _, choice in drawn]
        reals[:] = torch.tensor([temperatures, top_p, min_p], dtype=torch.float32).numpy()
        there = send(torch.from_numpy(packed), device)
        real = there[4:].view(torch.float32)[..., None]
        return cls(
            there[0].long() if drawn else None,
            real[0],
            real[1] if (reals[1] < 1).any() else None,
            there[1:3].T,
            there[3].long()[:, None] if packed[3].any() else None,
            real[2] if (reals[2] > -math.inf).any() else None,
        )


def choose(logits: Tensor, draws: Draws) -> list[int]:
    """The tokens of `choose_tokens`; waits for them."""
    chosen: list[int] = choose_tokens(logits, draws).tolist()
    return chosen


def choose_tokens(logits: Tensor, draws: Draws) -> Tensor:
    """A token for each row of logits [N, V]: int64 [N], where the logits are. Nothing waits for the device.

    A race (the Gumbel-max trick): token t finishes after E_t / p_t, where the E are independent exponential variates
    that the choice's keys decide, so it wins with probability p_t. Two sets of logits of nearly the same probabilities
    choose the same token mostly if they share the keys: speculation rests on that.
    """
    if draws.drawn is not None and len(draws.drawn) == len(logits):
        return _race(logits, draws)
    tokens = logits.argmax(-1)
    if draws.drawn is not None:
        tokens[draws.drawn] = _race(logits[draws.drawn], draws)
    return tokens


def _race(logits: Tensor, draws: Draws) -> Tensor:
    scaled = (logits.float() - logits.amax(-1, keepdim=True)) / draws.temperature
    if draws.min_p is not None:
        scaled = scaled.masked_fill(scaled < draws.min_p, -math.inf)  # the most likely token is at 0
    if draws.top_k is not None:
        scaled = _keep_top_k(scaled, draws.top_k)
    if draws.top_p is not None:
        scaled = _keep_top_p(scaled, draws.top_p)
    return (scaled - _exponential(draws.keys, logits.shape[-1]).log()).argmax(-1)


def _keep_top_k(scaled: Tensor, counts: Tensor) -> Tensor:
    """Mask the tokens that are less likely than the `counts`-th [N, 1] of their row. A count of 0 masks none."""
    import torch

    size = scaled.shape[-1]
    last = torch.where(counts > 0, counts, size).clamp(max=size) - 1
    ordered = scaled.sort(dim=-1, descending=True).values
    return scaled.masked_fill(scaled < ordered.gather(-1, last), -math.inf)


def _keep_top_p(scaled: Tensor, limit: Tensor) -> Tensor:
    """All but the fewest tokens whose probabilities reach `limit` [N, 1] become -inf. A limit of 1 drops none."""
    import torch

    ordered, ids = scaled.softmax(-1).sort(descending=True, stable=True)
    dropped = (ordered.cumsum(-1) - ordered >= limit) & (limit < 1)
    return scaled.masked_fill(torch.zeros_like(dropped).scatter(-1, ids, dropped), -math.inf)


def _exponential(keys: Tensor, size: int) -> Tensor:
    """Exponential variates [N, size] from int32 keys [N, 2], float32: on every device the same but for a last bit.

    31 bits of a hash u are a uniform variate in (0, 1], as fine near 0 as float32 is, where the winners are.
    """
    import torch

    bits = torch.arange(size, dtype=torch.int32, device=keys.device)[None] ^ keys[:, :1]
    bits = _mix(_mix(bits) + keys[:, 1:])
    return -torch.log1p(-((bits & 0x7FFFFFFF).float() + 0.5) * 2.0**-31)


def _mix(bits: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finalizer; int32 products wrap, and shifts are made logical by a mask."""
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * (0x85EBCA6B - 2**32)
    bits = (bits ^ ((bits >> 13) & 0x7FFFF)) * (0xC2B2AE35 - 2**32)
    return bits ^ ((bits >> 16) & 0xFFFF)
