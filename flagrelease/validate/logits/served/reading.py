"""From the scored tokens of a reply to `Listed`, or why they are not those of the document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flagrelease.validate.endpoint.replies import ScoredToken
from flagrelease.validate.logits.served.bounds import LEAST, NOTHING, Listed
from flagrelease.validate.logits.served.names import TokenNames

_ABOVE_ONE = 1e-3  # by which rounded probabilities may add up to more than 1


class UnreadableError(Exception):
    """The message says in what the reply is not the document's log-probabilities."""


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Log-probabilities of a document's tokens from number `first` on (counted from 0), each given all before it."""

    first: int
    listed: Listed


def read_scores(
    scores: Sequence[ScoredToken], tokens: Sequence[int], names: TokenNames | None, alternatives: int
) -> PromptScores:
    """Align what a server tells with the tokens that it was meant to read, and keep it as arrays.

    Args:
        scores: of the prompt's tokens, and of one behind them where the server echoes. Servers leave out the
            log-probability of the first; llama.cpp's also leaves out the begin-of-sentence token itself.
        tokens: the document.
        names: for tokens that are named by their text.
        alternatives: how many were asked for at each place.

    Raises:
        UnreadableError: other tokens, another number of them, or numbers that are no log-probabilities.
    """
    first = _aligned(scores, tokens, names)
    shown = list(zip(scores[: len(tokens) - first], tokens[first:], strict=True))
    if shown[0][0].logprob is None:
        shown, first = shown[1:], first + 1
    if len(shown) < 1:
        raise UnreadableError("no token has a log-probability")
    places = [_place(token, own, names, alternatives) for token, own in shown]
    width = max(len(place.found) for place in places)
    ids, logq = np.full((len(places), width), NOTHING, np.int64), np.zeros((len(places), width))
    for row, place in enumerate(places):
        ids[row, : len(place.found)] = list(place.found)
        logq[row, : len(place.found)] = list(place.found.values())
    listed = Listed(ids, logq, np.array([place.own for place in places]), np.array([place.ceiling for place in places]))
    _check_sums(listed, first)
    return PromptScores(first, listed)


def _aligned(scores: Sequence[ScoredToken], tokens: Sequence[int], names: TokenNames | None) -> int:
    """Which of the document's tokens the first scored one is."""
    odd = None
    for first in (0, 1):
        count = len(tokens) - first
        if len(scores) - count not in (0, 1) or count < 1:
            continue
        pairs = zip(scores[:count], tokens[first:], strict=True)
        wrong = next((at for at, (token, own) in enumerate(pairs) if not _is(token, own, names)), None)
        if wrong is None:
            return first
        if first == 0:
            odd = f"token {wrong} is {_shown(scores[wrong])} there and {tokens[wrong]} here"
    if odd is None:
        odd = f"{len(scores)} tokens are scored, the prompt has {len(tokens)}"
    raise UnreadableError(f"the server did not read the same tokens: {odd}")


def _is(token: ScoredToken, own: int, names: TokenNames | None) -> bool:
    if token.id is not None:
        return token.id == own
    if token.logprob is None and not token.text:
        return True  # the first token, of which nothing is told
    return names is not None and names.fits(token.text, own)


def _shown(token: ScoredToken) -> str:
    return repr(token.text) if token.id is None else str(token.id)


@dataclass(frozen=True, slots=True)
class _Place:
    """`found`: log-probabilities by token id, the own one included; `own`: of the token that followed."""

    found: dict[int, float]
    own: float
    ceiling: float


def _place(token: ScoredToken, own: int, names: TokenNames | None, alternatives: int) -> _Place:
    if token.logprob is None:
        raise UnreadableError("a token behind the first has no log-probability")
    found: dict[int, float] = {}
    nameless = []
    for each in token.top:
        logprob = _number(each.logprob)
        if each.id is None and each.text == token.text:
            known: int | None = own
        else:
            known = each.id if each.id is not None or names is None else names.id_of(each.text)
        if known is None:
            nameless.append(logprob)
        else:
            found[known] = logprob
    own_listed = own in found
    found[own] = _number(token.logprob)
    ranked = sorted([*(found[each] for each in found if each != own or own_listed), *nameless], reverse=True)
    ceiling = _ceiling(ranked, alternatives, found[own], by_name=any(each.id is None for each in token.top))
    return _Place(found, found[own], max([ceiling, *nameless]))


def _ceiling(ranked: list[float], alternatives: int, own: float, *, by_name: bool) -> float:
    """The log-probability of the last of the most likely tokens, which no unlisted one is above.

    A list by name loses one of two tokens that have the same, so it says nothing of the rest if it is shorter than
    asked for, or if only the token that followed, which is listed besides the most likely ones, makes it long enough.
    """
    whole = len(ranked) >= alternatives and not (by_name and len(ranked) == alternatives and own <= ranked[-1])
    return ranked[alternatives - 1] if whole else 0.0


def _number(logprob: float | None) -> float:
    if logprob is None or logprob > _ABOVE_ONE:
        raise UnreadableError(f"{logprob} is no log-probability")
    return logprob if math.isnan(logprob) else max(logprob, LEAST)


def _check_sums(listed: Listed, first: int) -> None:
    mass = np.where(listed.ids == NOTHING, 0.0, np.exp(listed.logq)).sum(-1)
    if (mass > 1 + _ABOVE_ONE).any():
        at = int(np.argmax(mass))
        raise UnreadableError(
            f"probabilities at token {at + first} add up to {mass[at]:.4f}: not those of one distribution"
        )
