"""What is kept of the distributions of one run, and the figures of each token of another run against it.

KL is over the reference's K most likely tokens and one bucket for all others. Putting tokens into one bucket can only
lower KL (data processing inequality), so it is a lower bound of KL over the vocabulary, and equal to it where K is the
whole vocabulary. Logarithms are natural, sums float64; two equal runs differ by exactly 0.

Legend: T tokens, S tokens of a piece, V vocabulary, K kept.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Kept:
    """The run that others are compared with.

    `ids` int32 and `logp` float32 [T, K], most likely first; `tail` float32 [T], log of the probability of all others
    (-inf where K is the vocabulary); `target` float32 [T], of the token that followed.
    """

    ids: Array
    logp: Array
    tail: Array
    target: Array


@dataclass(frozen=True, slots=True)
class Figures:
    """One run against a kept one, by token, [T] each.

    Attributes:
        kl: float64, KL(kept || this run) in nats; 0 where not `finite`.
        margin: float32, how far the kept run's first token is ahead of its second, in nats.
        agree: bool, the kept run's first token is this run's too.
        reference, tested: float32, log-probabilities of the token that followed.
        tail: float32, probability that the kept run gives to the tokens that are not kept.
        finite: bool, this run's logits hold no NaN and no infinity.
    """

    kl: Array
    margin: Array
    agree: Array
    reference: Array
    tested: Array
    tail: Array
    finite: Array


Piece = TypeVar("Piece", Kept, Figures)


def keep(logits: Tensor, targets: Tensor, top: int) -> Kept:
    """Reduce logits [S, V], any float dtype, to their `top` best; targets int64 [S] on the same device."""
    logp = logits.float().log_softmax(-1)
    best = logp.topk(top, dim=-1)
    return Kept(
        ids=best.indices.int().cpu().numpy(),
        logp=best.values.cpu().numpy(),
        tail=_others(logp, best.indices).cpu().numpy(),
        target=logp.gather(-1, targets[:, None])[:, 0].cpu().numpy(),
    )


def compare(kept: Kept, logits: Tensor, targets: Tensor) -> Figures:
    """Figures of logits [S, V] against the same tokens of a kept run."""
    finite = logits.isfinite().all(-1)
    logp = logits.float().where(finite[:, None], 0).log_softmax(-1)
    ids = torch.from_numpy(kept.ids).long().to(logp.device)
    at = logp.gather(-1, ids)
    real = finite.cpu().numpy()
    kl = _kl(kept, at.cpu().numpy(), _others(logp, ids).cpu().numpy())
    return Figures(
        kl=np.where(real, kl, 0.0),
        margin=kept.logp[:, 0] - kept.logp[:, 1],
        agree=(at[:, 0] == logp.amax(-1)).cpu().numpy() & real,  # by value: equal runs agree in spite of ties
        reference=kept.target,
        tested=logp.gather(-1, targets[:, None])[:, 0].cpu().numpy(),
        tail=np.exp(kept.tail),
        finite=real,
    )


def _others(logp: Tensor, ids: Tensor) -> Tensor:
    """Log of the probability of all tokens but `ids`. Summed, not 1 minus a sum: the tail may be 1e-9."""
    return logp.scatter(-1, ids, -torch.inf).logsumexp(-1)


def _kl(kept: Kept, logq: Array, tail: Array) -> NDArray[np.float64]:
    logp = kept.logp.astype(np.float64)
    inside = (np.exp(logp) * (logp - logq)).sum(-1)
    rest = kept.tail.astype(np.float64)
    has_rest = np.isfinite(rest)
    outside = np.exp(rest) * (np.where(has_rest, rest, 0.0) - np.where(has_rest, tail, 0.0))
    # float32 logits are normalised to about 1e-7, by which a KL of two nearly equal runs can fall below 0
    return np.asarray(np.maximum(inside + outside, 0.0))


def join(pieces: list[Piece]) -> Piece:
    """Pieces of one sequence, in order, as one."""
    kind = type(pieces[0])
    return kind(**{f.name: np.concatenate([getattr(piece, f.name) for piece in pieces]) for f in fields(kind)})


def part(kept: Kept, start: int, count: int) -> Kept:
    """`count` tokens of a kept run, from `start` on."""
    return Kept(**{f.name: getattr(kept, f.name)[start : start + count] for f in fields(Kept)})
