"""From a reply of an endpoint to what is compared of it."""

from __future__ import annotations

import math

from flagrelease.validate.endpoint.replies import ChatReply, ScoredToken
from flagrelease.validate.invariance.difference import Said, SaidToken


def said_of(circumstance: str, prompt: str, reply: ChatReply) -> Said:
    """What an answer said in one circumstance. A reply without log-probabilities has no tokens."""
    listed = reply.logprobs or ()
    told = [token.logprob for token in listed if token.logprob is not None]
    odd = sum(not math.isfinite(each) for each in told)
    complete = len(told) == len(listed) and not odd
    return Said(
        circumstance=circumstance,
        prompt=prompt,
        text=reply.content,
        prompt_tokens=reply.used.prompt,
        answer_tokens=reply.used.answer,
        cached_tokens=reply.used.cached or 0,
        tokens=tuple(map(_token, listed)) if complete else (),
        no_numbers=odd,
    )


def _token(token: ScoredToken) -> SaidToken:
    assert token.logprob is not None, "an answer's token has a log-probability"
    return SaidToken(text=token.text, logprob=token.logprob, margin=_margin(token))


def _margin(token: ScoredToken) -> float | None:
    listed = (each.logprob for each in token.top if each.logprob is not None)
    known = sorted((each for each in listed if math.isfinite(each)), reverse=True)
    return known[0] - known[1] if len(known) > 1 else None
