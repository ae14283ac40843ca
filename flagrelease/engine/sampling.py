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

    from flagrelease.engine.kernels.operators import Operators

_FIELDS = 6  # of a choice, as `Draws.of` sends them
_MOST = 2**31 - 1
_HOTTEST = 3e38  # of FP32: a logit of -inf over an infinite temperature would not be a number, and win


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
        temperature: FP32 [n]; None if all rows take the most likely token, as those of 0 do.
        keys: int32 [n, 2].
        min_p: FP32 [n], natural logarithms.
        top_p: FP32 [n]; None if no row cuts anything off.
        top_k: int64 [n]; None if no row cuts anything off.
    """

    temperature: Tensor | None
    keys: Tensor
    min_p: Tensor
    top_p: Tensor | None
    top_k: Tensor | None

    @classmethod
    def of(cls, choices: Sequence[Choice], device: torch.device) -> Draws:
        """One choice for each row of the logits, in one copy to `device` that waits for nothing there."""
        import torch

        from flagrelease.engine.transfer import send

        packed = np.empty((_FIELDS, len(choices)), dtype=np.int32)
        packed[:2] = np.array([choice.keys for choice in choices], dtype=np.int32).reshape(-1, 2).T
        packed[2] = [min(choice.top_k, _MOST) for choice in choices]
        reals = packed[3:].view(np.float32)
        temperatures = [min(choice.temperature, _HOTTEST) for choice in choices]
        top_p = [choice.top_p for choice in choices]
        min_p = [math.log(choice.min_p) if choice.min_p else -math.inf for choice in choices]
        reals[:] = torch.tensor([temperatures, min_p, top_p], dtype=torch.float32).numpy()
        there = send(torch.from_numpy(packed), device)
        real = there[3:].view(torch.float32)
        return cls(
            real[0] if any(temperatures) else None,
            there[:2].T,
            real[1],
            real[2] if (reals[2] < 1).any() else None,
            there[2].long() if packed[2].any() else None,
        )


def choose(ops: Operators, logits: Tensor, draws: Draws) -> list[int]:
    """The tokens of `choose_tokens`; waits for them."""
    chosen: list[int] = choose_tokens(ops, logits, draws).tolist()
    return chosen


def choose_tokens(ops: Operators, logits: Tensor, draws: Draws) -> Tensor:
    """A token for each row of logits [N, V]: int64 [N], where the logits are. Nothing waits for the device.

    The operator `race` decides, among the tokens that top_k and top_p leave.
    """
    if draws.temperature is None:
        return logits.argmax(-1)
    if draws.top_k is None and draws.top_p is None:
        return ops.race(logits, draws.temperature, draws.keys, draws.min_p)
    temperature = draws.temperature[:, None]
    scaled = (logits.float() - logits.amax(-1, keepdim=True)) / temperature.where(temperature > 0, 1)
    scaled = scaled.masked_fill(scaled < draws.min_p[:, None], -math.inf)  # the most likely token is at 0
    if draws.top_k is not None:
        scaled = _keep_top_k(scaled, draws.top_k[:, None])
    if draws.top_p is not None:
        scaled = _keep_top_p(scaled, draws.top_p[:, None])
    return ops.race(scaled, draws.temperature.sign(), draws.keys, draws.min_p)


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
