"""Requests that make no sense are refused as such: a server that answers them has not read them."""

from __future__ import annotations

from collections.abc import Mapping

from flagrelease.validate.endpoint.replies import ChatReply, Unsupported
from flagrelease.validate.preflight.check import PreflightCheck, judged


def judge_refusals(answers: Mapping[str, ChatReply | Unsupported | str]) -> PreflightCheck:
    """By what is wrong with the request, what came; a text is an error of the server or the connection."""
    asked, expected = f"requests with {', '.join(answers)}", "HTTP 400, 404 or 422 for each"
    came = ", ".join(f"{what}: {_shown(reply)}" for what, reply in answers.items())
    refused = all(isinstance(reply, Unsupported) and reply.status is not None for reply in answers.values())
    return judged("bad-request", asked, expected, came, "pass" if refused else "fail")


def _shown(reply: ChatReply | Unsupported | str) -> str:
    if isinstance(reply, str):
        return reply
    return "answered" if isinstance(reply, ChatReply) or reply.status is None else f"HTTP {reply.status}"
