"""Answers to several requests of one kind, some of which a server may have refused."""

from __future__ import annotations

from collections.abc import Sequence

from flagrelease.validate.endpoint.replies import ChatReply, Unsupported

Answers = Sequence[ChatReply | Unsupported]


def first_refusal(answers: Answers) -> str:
    """Why there is no answer, in the words of the first request that has none."""
    return next((reply.told for reply in answers if isinstance(reply, Unsupported)), "nothing was asked")
