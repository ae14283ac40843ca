"""Which sequences a scheduler takes."""

from __future__ import annotations

from collections.abc import Sequence

from flagrelease.engine.sampling import Sampling, SamplingError
from flagrelease.errors import UsageError


def admit(prompt: Sequence[int], sampling: Sampling, context: int, vocabulary: int) -> int:
    """How many tokens the sequence may get.

    Args:
        prompt: its token ids.
        sampling: how it is continued.
        context: tokens that a row has room for.
        vocabulary: the model's token ids end before it.

    Raises:
        UsageError: an empty prompt, a token the model does not have, or more tokens than the context holds.
        SamplingError: a parameter that does not fit this model or this answer.
    """
    room = context - len(prompt)
    if not prompt:
        raise UsageError("an empty prompt")
    limit = room if sampling.max_tokens is None else sampling.max_tokens
    if room < 0 or limit > room:
        raise UsageError(
            f"a prompt of {len(prompt)} tokens and {max(limit, 0)} more for the answer: the context is {context}"
        )
    if min(prompt) < 0 or max(prompt) >= vocabulary:
        raise UsageError(f"a token id outside the vocabulary of {vocabulary}")
    sampling.check_tokens(vocabulary)
    if sampling.min_tokens > limit:
        raise SamplingError("min_tokens", f" {sampling.min_tokens}: the answer may have {limit}")
    for count in (sampling.logprobs, sampling.prompt_logprobs):
        if count is not None and count > vocabulary:
            raise UsageError(f"{count} log-probabilities of each token: the vocabulary has {vocabulary}")
    return limit
