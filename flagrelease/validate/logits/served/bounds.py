"""What a server's few log-probabilities say of KL: bounds that hold whatever it did not tell.

The baseline knows the reference p on its K most likely tokens S and the mass p_T of all others. What the engine's stage
judges is KL over S and one bucket T for the rest,

    KL_S = sum over S of p log(p / q) + p_T log(p_T / q_T),

which is at most KL over the vocabulary. Of the served distribution q only the listed tokens L are known: its k most
likely ones and the token that followed, and so is the mass m = 1 - q(L) of all others, of which none is more likely
than the last of the k (`ceiling`, c).

*Lower bound.* The smallest KL_S that any q with this list can have: over q_i for i in S without L, 0 <= q_i <= c, and
the unlisted part r of the bucket, 0 <= r <= c n (n: unlisted tokens outside S), with sum q_i + r <= m. The problem is
convex and its minimum is water-filling, q_i = min(c, x p_i) and q_T = a + r = clip(x p_T, a, a + c n), where a is the
mass of the listed tokens outside S and x is the number at which the mass is used up. Without ceilings every q_i / p_i
is the same, and it is the log-sum inequality over the merged cells. What is returned is the Lagrange dual at x found by
bisection: by weak duality a lower bound at any x, so rounding of x cannot make it too large.

*Upper bound.* An unlisted token may have q_i as near to 0 as it likes: nothing in the list is a floor for it. So KL_S
has no finite upper bound where the reference has mass on unlisted tokens of S, and `upper` is infinite there; where all
of S is listed, both bounds are KL_S itself. The total variation is bounded on both sides whatever is listed: merging
cells lowers it, and on unlisted cells p and q can at most be disjoint.

Legend: T tokens of a document, K kept of the reference, L listed by the server, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagrelease.validate.logits.distribution import Kept, part

Array = NDArray[Any]
Numbers = NDArray[np.float64]
NOTHING = -1  # an id where nothing is listed
LEAST = -9999.0  # what servers write for minus infinity, which JSON cannot say
SLACK = 1e-5  # by which a server's float32 probabilities may fail to add up to 1
_HIGHEST, _STEPS = 700.0, 60  # of the bisection over log x: the last step is of 1e-15
_ROWS = 256  # tokens worked on at once: 2 MB an array of 1000 kept


@dataclass(frozen=True, slots=True)
class Listed:
    """What a server told of the tokens of one document.

    Attributes:
        ids: int64 [T, L], tokens without repetition, `NOTHING` in unused places. The token that followed is among them.
        logq: float64 [T, L], their log-probabilities; any number where nothing is listed.
        target: float64 [T], of the token that followed.
        ceiling: float64 [T], log: no token that is not listed is more likely; 0 where nothing is known of them.
    """

    ids: Array
    logq: Numbers
    target: Numbers
    ceiling: Numbers

    def part(self, rows: slice) -> Listed:
        """Some of the tokens."""
        return Listed(self.ids[rows], self.logq[rows], self.target[rows], self.ceiling[rows])


@dataclass(frozen=True, slots=True)
class Bounds:
    """By token, float64 [T], natural logarithms.

    Attributes:
        lower, upper: of KL_S; `upper` is infinite where the list has no bound.
        least_variation, most_variation: of the total variation over the vocabulary.
        unlisted: probability that the reference gives to tokens that the server did not list.
    """

    lower: Numbers
    upper: Numbers
    least_variation: Numbers
    most_variation: Numbers
    unlisted: Numbers


def listed_of(kept: Kept, targets: Array, count: int) -> Listed:
    """What a server of a kept run would have told with its `count` most likely tokens (at least 1, at most K)."""
    top = kept.ids[:, :count].astype(np.int64)
    outside = (top != targets[:, None]).all(-1)
    ids = np.concatenate([top, np.where(outside, targets, NOTHING)[:, None]], axis=1)
    target = kept.target.astype(np.float64)
    logq = np.concatenate([kept.logp[:, :count].astype(np.float64), target[:, None]], axis=1)
    return Listed(ids, logq, target, kept.logp[:, count - 1].astype(np.float64))


def bound(kept: Kept, listed: Listed, vocabulary: int) -> Bounds:
    """Bounds of KL(kept || served), token by token.

    Args:
        kept: the reference, T tokens.
        listed: what the server told of the same tokens.
        vocabulary: tokens that the model has.
    """
    parts = [
        _bound(_Cells.of(part(kept, at, _ROWS), listed.part(slice(at, at + _ROWS)), vocabulary))
        for at in range(0, len(kept.target), _ROWS)
    ]
    return Bounds(**{f.name: np.concatenate([getattr(each, f.name) for each in parts]) for f in fields(Bounds)})


@dataclass(frozen=True, slots=True)
class _Cells:
    """A few tokens' distributions, cut into what is known of both sides and what is not.

    Attributes:
        logp: [T, K], the reference.
        logq: [T, K], served; NaN where it is not listed.
        rest: [T], the reference's mass outside S.
        extra: [T], served mass of listed tokens outside S.
        free: [T], served mass that is not listed, `SLACK` added.
        ceiling: [T], the most that an unlisted token can have.
        room: [T], the most that all unlisted tokens outside S can have.
    """

    logp: Numbers
    logq: Numbers
    rest: Numbers
    extra: Numbers
    free: Numbers
    ceiling: Numbers
    room: Numbers

    @classmethod
    def of(cls, kept: Kept, listed: Listed, vocabulary: int) -> _Cells:
        ids, logp = kept.ids.astype(np.int64), kept.logp.astype(np.float64)
        real = listed.ids != NOTHING
        told = np.where(real, np.maximum(listed.logq, LEAST), -np.inf)
        place, inside = _places(ids, listed.ids, vocabulary)
        inside &= real
        logq = np.full(logp.shape, np.nan)
        rows = np.nonzero(inside)[0]
        logq[rows, place[inside]] = told[inside]
        outside = real & ~inside
        ceiling = np.exp(listed.ceiling)
        return cls(
            logp=logp,
            logq=logq,
            rest=np.exp(kept.tail.astype(np.float64)),
            extra=np.exp(np.where(outside, told, -np.inf)).sum(-1),
            free=np.maximum(1.0 - np.exp(told).sum(-1), 0.0) + SLACK,
            ceiling=ceiling,
            room=ceiling * (vocabulary - logp.shape[1] - outside.sum(-1)),
        )


def _places(ids: Array, wanted: Array, vocabulary: int) -> tuple[Array, NDArray[np.bool_]]:
    """Where each wanted id [T, L] stands among ids [T, K] of the same row, and whether it is there."""
    row = np.arange(len(ids))[:, None] * vocabulary
    order = np.argsort(ids, axis=1)
    keys = (np.take_along_axis(ids, order, 1) + row).ravel()
    asked = np.clip(wanted, 0, vocabulary - 1) + row
    found = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    there: NDArray[np.bool_] = (keys[found] == asked) & (wanted < vocabulary)  # a padded head has more tokens
    return order.ravel()[found], there


def _bound(cells: _Cells) -> Bounds:
    known = ~np.isnan(cells.logq)
    everywhere = np.exp(cells.logp)
    p, hidden = np.where(known, everywhere, 0.0), np.where(known, 0.0, everywhere)
    logq = np.where(known, cells.logq, 0.0)
    seen = (p * np.where(p > 0, cells.logp - logq, 0.0)).sum(-1)
    apart = np.abs(p - np.where(known, np.exp(logq), 0.0)).sum(-1)
    unlisted, served = hidden.sum(-1) + cells.rest, cells.extra + cells.free
    # float32 log-probabilities add up to 1 within 1e-7, by which a bound of two nearly equal runs can fall below 0
    lower = np.maximum(seen + _least_hidden(hidden, cells), 0.0)
    merged = np.maximum(np.abs(unlisted - served) - SLACK, 0.0)
    return Bounds(
        lower=lower,
        upper=np.where(hidden.sum(-1) > 0, np.inf, lower),
        least_variation=np.minimum((apart + merged) / 2, 1.0),
        most_variation=np.minimum((apart + unlisted + served) / 2, 1.0),
        unlisted=unlisted,
    )


def _least_hidden(hidden: Numbers, cells: _Cells) -> Numbers:
    """The least that the unlisted tokens of S and the bucket add to KL_S, [T]: the dual of water-filling."""
    x, price = _level(hidden, cells)
    filled = _fill(hidden, cells, x)
    primal = _relative(hidden, filled.q).sum(-1) + _relative(cells.rest, filled.bucket)
    return np.where(hidden.sum(-1) + cells.rest > 0, primal + price * (filled.used - cells.free), 0.0)


def _level(hidden: Numbers, cells: _Cells) -> tuple[Numbers, Numbers]:
    """The level x at which the mass is used up, and the price of mass there, 1 / x; 0 where all is at its ceiling."""
    ceiling, free, total = cells.ceiling, cells.free, hidden.sum(-1)
    falling = -np.sort(-hidden, axis=-1)
    below = total[:, None] - np.cumsum(falling, -1) + falling  # mass from here on
    some = falling > 0
    level = ceiling[:, None] / np.where(some, falling, 1.0)  # at which the water of each token meets its ceiling
    count = np.arange(falling.shape[1])
    used = count * ceiling[:, None] + level * below + _bucket(cells, level) - cells.extra[:, None]
    full = (some & (used <= free[:, None])).sum(-1)
    rest = np.where(full < falling.shape[1], below[np.arange(len(below)), np.minimum(full, below.shape[1] - 1)], 0.0)
    # at x = free / total no more than the mass is used; at exp(700) everything is at its ceiling
    everything = np.maximum(total + cells.rest, np.finfo(np.float64).tiny)
    low, high = np.log(free / everything), np.full(len(total), _HIGHEST)
    for _ in range(_STEPS):
        x = np.exp(middle := (low + high) / 2)
        fits = full * ceiling + x * rest + _bucket(cells, x[:, None])[:, 0] - cells.extra <= free
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    endless = low > _HIGHEST - 1
    return np.exp(low), np.where(endless, 0.0, np.exp(-low))


def _bucket(cells: _Cells, x: Numbers) -> Numbers:
    """Served mass outside S at levels x [T, N]."""
    rest, extra, room = (each[:, None] for each in (cells.rest, cells.extra, cells.room))
    return np.clip(rest * x, extra, extra + room)


@dataclass(frozen=True, slots=True)
class _Filled:
    """Served mass at one x: of unlisted tokens of S [T, K], of the bucket [T], and what of both is not listed [T]."""

    q: Numbers
    bucket: Numbers
    used: Numbers


def _fill(hidden: Numbers, cells: _Cells, x: Numbers) -> _Filled:
    q = np.minimum(hidden * x[:, None], cells.ceiling[:, None])
    bucket = _bucket(cells, x[:, None])[:, 0]
    return _Filled(q, bucket, q.sum(-1) + bucket - cells.extra)


def _relative(p: Numbers, q: Numbers) -> Numbers:
    """p log(p / q); 0 where p is 0."""
    some = p > 0
    return np.where(some, p * np.log(np.where(some, p, 1.0) / np.where(some, q, 1.0)), 0.0)
