"""Log-probabilities are those of a distribution, of the model's own logits, and the greedy token is its likeliest."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flagrelease.validate.endpoint.replies import ChatReply, ScoredToken, Unsupported
from flagrelease.validate.preflight.check import PreflightCheck, judged

_ROUNDED = 1e-3  # nats: servers write what they have in float16 at the coarsest
_IMPOSSIBLE = -1000.0  # what stands for minus infinity: -9999 in vLLM and ours


def judge_logprobs(reply: ChatReply | Unsupported, top: int) -> PreflightCheck:
    """Of one greedy answer, with `top` alternatives to each token."""
    asked = f"a greedy answer with the log-probabilities of its tokens and of {top} alternatives"
    expected = "none above 0, the token's own among its alternatives and above the others, sums of at most 1"
    if isinstance(reply, Unsupported):
        return judged("logprobs", asked, expected, reply.told, "fail" if reply.malformed else "not-shown")
    if not reply.logprobs:
        return judged("logprobs", asked, expected, "none came", "not-shown")
    for n, token in enumerate(reply.logprobs, 1):
        if fault := _fault(token):
            return judged("logprobs", asked, expected, f"token {n}: {fault}", "fail")
    if fault := _fault_of_all(reply.logprobs):
        return judged("logprobs", asked, expected, fault, "fail")
    least = min(token.logprob or 0.0 for token in reply.logprobs)
    came = f"{len(reply.logprobs)} tokens, from {least:.2f} to {max(t.logprob or 0.0 for t in reply.logprobs):.2f}"
    if not all(token.top for token in reply.logprobs):
        return judged("logprobs", asked, expected, f"{came}, without alternatives", "not-shown")
    if (fewest := min(len(token.top) for token in reply.logprobs)) < top:
        return judged("logprobs", asked, expected, f"{came}, with {fewest} alternatives of {top}", "noted")
    return judged("logprobs", asked, expected, came, "pass")


def _fault(token: ScoredToken) -> str | None:
    if token.logprob is None or not math.isfinite(token.logprob):
        return "no log-probability"
    every = [token.logprob, *(each.logprob for each in token.top if each.logprob is not None)]
    if any(math.isnan(each) for each in every):
        return "an alternative has no log-probability"
    if max(every) > _ROUNDED:
        return f"{max(every):.4f} is above 0"
    if not token.top:
        return None
    total = sum(math.exp(each.logprob) for each in token.top if each.logprob is not None)
    if total > 1 + len(token.top) * _ROUNDED:
        return f"the probabilities of the alternatives sum to {total:.4f}"
    own = [each.logprob for each in token.top if each.text == token.text and each.logprob is not None]
    if not own:
        return "the greedy token is not among its alternatives"
    if min(abs(each - token.logprob) for each in own) > _ROUNDED:
        return f"{token.logprob:.4f}, but {own[0]:.4f} among its alternatives"
    if token.logprob < max(every) - _ROUNDED:
        return f"the greedy token has {token.logprob:.4f}, another one {max(every):.4f}"
    return None


def _fault_of_all(tokens: Sequence[ScoredToken]) -> str | None:
    """What no token shows alone: at temperature 0 a server that divides by it leaves one token possible."""
    others = [
        each.logprob for token in tokens for each in token.top if each.text != token.text and each.logprob is not None
    ]
    if others and all(token.logprob == 0 for token in tokens) and max(others) <= _IMPOSSIBLE:
        return "every token is certain: these are log-probabilities after the temperature, not the model's own"
    return None
