"""Reasoning comes apart from the content, and there is none where none was asked for."""

from __future__ import annotations

from flagrelease.validate.endpoint.replies import ChatReply
from flagrelease.validate.preflight.answers import Answers, first_refusal
from flagrelease.validate.preflight.check import PreflightCheck, judged
from flagrelease.validate.preflight.ending import markup_in


def judge_reasoning(thinking: Answers) -> PreflightCheck:
    """Answers in a thinking mode have their reasoning in a field of its own."""
    asked = "questions in a thinking mode"
    expected = "reasoning_content (or reasoning), and no <think> in the content"
    came = [reply for reply in thinking if isinstance(reply, ChatReply)]
    if not came:
        return judged("reasoning-apart", asked, expected, first_refusal(thinking), "fail")
    for reply in came:
        if found := markup_in(reply.content) or markup_in(reply.reasoning):
            return judged("reasoning-apart", asked, expected, f"{found} in an answer", "fail")
    apart = sum(bool(reply.reasoning) for reply in came)
    if apart:
        return judged("reasoning-apart", asked, expected, f"{apart} of {len(came)} answers have reasoning", "pass")
    if any(reply.content for reply in came):
        return judged("reasoning-apart", asked, expected, "no answer has reasoning, all is content", "fail")
    return judged("reasoning-apart", asked, expected, "the answers are empty", "not-shown")


def judge_no_reasoning(chats: Answers) -> PreflightCheck:
    """Answers in chat mode have none."""
    asked, expected = "questions in chat mode", "content, and no reasoning"
    came = [reply for reply in chats if isinstance(reply, ChatReply)]
    if not came:
        return judged("no-reasoning", asked, expected, first_refusal(chats), "fail")
    thought = sum(bool(reply.reasoning) for reply in came)
    if thought:
        return judged("no-reasoning", asked, expected, f"{thought} of {len(came)} answers have reasoning", "fail")
    if not any(reply.content for reply in came):
        return judged("no-reasoning", asked, expected, "the answers are empty", "not-shown")
    return judged("no-reasoning", asked, expected, f"none in {len(came)} answers", "pass")
