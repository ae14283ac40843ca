"""Choosing the next token from logits, and saying how likely it was."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.errors import UsageError


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
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False

    def __post_init__(self) -> None:
        """Refuse values without meaning.

        Raises:
            UsageError: names the parameter.
        """
        rules = {
            "temperature": math.isfinite(self.temperature) and self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "max_tokens": self.max_tokens is None or self.max_tokens >= 0,
            "stop": all(self.stop),
            "logprobs": self.logprobs is None or self.logprobs >= 0,
        }
        for name, holds in rules.items():
            if not holds:
                raise UsageError(f"{name} {getattr(self, name)!r} is out of range")


class Sampler:
    """One sequence's stream of choices."""

    def __init__(self, sampling: Sampling) -> None:
        """Seeded by `sampling.seed`, else by the system."""
        self._sampling = sampling
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)

    def pick(self, logits: Tensor) -> int:
        """The next token for logits [V]. On the CPU in float64: the same choice whatever device the logits are from."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        p = (logits.double().cpu() / self._sampling.temperature).softmax(-1)
        ordered, ids = p.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        kept = ordered.where(before < self._sampling.top_p, 0)
        return int(ids[torch.multinomial(kept, 1, generator=self._random)])


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token, its log-probability (None for a prompt's first), and the most likely ones with theirs, best first."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


def score(logits: Tensor, tokens: list[int], top: int) -> list[TokenScore]:
    """Scores of `tokens` under logits [T, V]: natural logarithms at temperature 1, whatever the sampling was."""
    logp = logits.float().log_softmax(-1)
    own = logp.gather(-1, torch.tensor(tokens, device=logp.device)[:, None])[:, 0].tolist()
    best = logp.topk(top, dim=-1)
    pairs = [tuple(zip(i, v, strict=True)) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return [TokenScore(token, p, t) for token, p, t in zip(tokens, own, pairs, strict=True)]
