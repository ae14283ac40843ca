"""Log-probabilities in the forms in which servers write them, as `ScoredToken`s. Anything else is a `ValueError`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from flagrelease.validate.endpoint.replies import ScoredToken

_NAMED_BY_ID = re.compile(r"token_id:(\d+)")  # vLLM's and ours under return_tokens_as_token_ids


def of_chat(entries: Any) -> tuple[ScoredToken, ...] | None:
    """OpenAI's chats: a list of {token, logprob, top_logprobs}; None for null."""
    if entries is None:
        return None
    return tuple(
        _token(entry["token"], entry["logprob"], tuple(map(_alternative, entry.get("top_logprobs") or ())))
        for entry in _listed(entries)
    )


def of_completion(written: Any, most: int) -> tuple[ScoredToken, ...] | None:
    """OpenAI's completions: parallel lists `tokens`, `token_logprobs` and `top_logprobs`, a mapping or null each.

    Args:
        most: how many alternatives were asked for. The chosen token comes on top of them where it is none of them, and
            is left out of `top` then. Two tokens with one text are one entry of a mapping: which one, the server knows.
    """
    if written is None:
        return None
    tokens, own = _listed(written["tokens"]), _listed(written["token_logprobs"])
    tops = _listed(written.get("top_logprobs") or [None] * len(tokens))
    if not len(tokens) == len(own) == len(tops):
        raise ValueError("lists of log-probabilities differ in length")
    return tuple(
        _token(text, logprob, _mapped(top)[:most]) for text, logprob, top in zip(tokens, own, tops, strict=True)
    )


def of_prompt(entries: Any, ids: Sequence[int] | None) -> tuple[ScoredToken, ...] | None:
    """vLLM's `prompt_logprobs`: null, then for each token a mapping from ids to {logprob, rank, decoded_token}.

    Args:
        ids: of the prompt's tokens where they are known. Else the first entry of a mapping is the prompt's own token,
            as vLLM and `flagrelease serve` write them; and the first token of all, of which they tell nothing, has no
            id.
    """
    if entries is None:
        return None
    listed = _listed(entries)
    if ids is not None and len(ids) != len(listed):
        raise ValueError(f"{len(listed)} log-probabilities for {len(ids)} tokens of the prompt")
    return tuple(_prompt_token(entry, None if ids is None else ids[at]) for at, entry in enumerate(listed))


def _prompt_token(entry: Any, own: int | None) -> ScoredToken:
    if entry is None:
        return ScoredToken("", own, None)
    if not isinstance(entry, Mapping) or not entry:
        raise ValueError("a token of the prompt has no log-probabilities")
    found = {_id(int(key)): value for key, value in entry.items()}
    own = next(iter(found)) if own is None else own
    listed = {token: _of_prompt(token, value) for token, value in found.items()}
    if own not in listed:
        raise ValueError("a token of the prompt is not among its log-probabilities")
    # Where the own token is none of the most likely ones, it is listed besides: its rank is beyond their number then.
    mine, others = listed[own], [each for token, each in listed.items() if token != own]
    among = mine.rank is None or mine.rank <= len(listed)
    top = _likeliest([mine, *others] if among else others)
    return ScoredToken(mine.text, mine.id, mine.logprob, mine.rank, top)


def _of_prompt(token: int, value: Any) -> ScoredToken:
    return ScoredToken(
        _text(value.get("decoded_token") or ""), token, _number(value["logprob"]), _rank(value.get("rank"))
    )


def _alternative(entry: Any) -> ScoredToken:
    return _token(entry["token"], entry["logprob"], ())


def _mapped(top: Any) -> tuple[ScoredToken, ...]:
    if top is None:
        return ()
    if not isinstance(top, Mapping):
        raise ValueError("alternatives of a token are no mapping")
    return _likeliest([_token(text, logprob, ()) for text, logprob in top.items()])


def _likeliest(tokens: list[ScoredToken]) -> tuple[ScoredToken, ...]:
    return tuple(sorted(tokens, key=lambda token: -(token.logprob or 0.0)))


def _token(text: Any, logprob: Any, top: tuple[ScoredToken, ...]) -> ScoredToken:
    name = _text(text)
    by_id = _NAMED_BY_ID.fullmatch(name)
    return ScoredToken(
        name, _id(int(by_id[1])) if by_id else None, None if logprob is None else _number(logprob), None, top
    )


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("log-probabilities are no list")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a token is no text")
    value.encode()  # half of a surrogate pair is no text
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("a log-probability is no number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("a log-probability is no number") from None


def _id(token: int) -> int:
    if not 0 <= token < 2**31:
        raise ValueError("a token has an id that no vocabulary has")
    return token


def _rank(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError("a rank is no number from 1")
    return value
