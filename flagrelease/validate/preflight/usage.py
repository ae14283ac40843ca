"""Counts of tokens add up, and a stream gives what comes whole."""

from __future__ import annotations

from collections.abc import Sequence

from flagrelease.validate.endpoint.replies import ChatReply, StreamedReply, Unsupported
from flagrelease.validate.invariance.difference import difference
from flagrelease.validate.invariance.said import said_of
from flagrelease.validate.preflight.check import PreflightCheck, judged

Limited = tuple[ChatReply | Unsupported, int]  # an answer, and how many tokens it could have


def judge_usage(answers: Sequence[Limited]) -> PreflightCheck:
    """No answer is longer than it may be, one that was cut is as long, and totals are sums."""
    asked = f"the counts of {len(answers)} answers"
    expected = "prompt and answer that add up, no answer longer than max_tokens, one that was cut exactly as long"
    if malformed := [reply for reply, _ in answers if isinstance(reply, Unsupported) and reply.malformed]:
        return judged("usage", asked, expected, malformed[0].told, "fail")
    came = [(reply, most) for reply, most in answers if isinstance(reply, ChatReply)]
    if not came:
        return judged("usage", asked, expected, "no answer came", "not-shown")
    for reply, most in came:
        if fault := _fault(reply, most):
            return judged("usage", asked, expected, fault, "fail")
    cut = sum(reply.finish == "length" for reply, _ in came)
    return judged("usage", asked, expected, f"{len(came)} answers, {cut} of them cut", "pass")


def judge_unreadable(said: str) -> PreflightCheck:
    """Of a server whose plain answers are no chat completions, which leaves nothing else to check."""
    return judged("usage", "short chats", "chat completions with one choice and their usage", said, "fail")


def judge_streamed(whole: ChatReply | Unsupported, streamed: StreamedReply | Unsupported, tie: float) -> PreflightCheck:
    """A greedy answer as a stream: the same text, end and counts; another text is allowed where it parts at a tie."""
    asked, expected = "a greedy answer again, as a stream", "pieces that make the same text, its usage, and [DONE]"
    if isinstance(whole, Unsupported):
        return judged("streamed", asked, expected, whole.told, "not-shown")
    if isinstance(streamed, Unsupported):
        return judged("streamed", asked, expected, streamed.told, "fail")
    if not streamed.done:
        return judged("streamed", asked, expected, "the stream ended without [DONE]", "fail")
    reply = streamed.reply
    parting = difference(said_of("whole", "question", whole), said_of("streamed", "question", reply), tie).parting
    if parting == "near tie":
        return judged("streamed", asked, expected, f"another text, parting at a near tie below {tie:g} nats", "pass")
    if parting != "none":
        return judged("streamed", asked, expected, f"{len(reply.content)} characters for {len(whole.content)}", "fail")
    whole_counts = (whole.finish, whole.used.prompt, whole.used.answer)
    counts = (reply.finish, reply.used.prompt, reply.used.answer)
    if counts != whole_counts:
        return judged("streamed", asked, expected, f"{counts} for {whole_counts}", "fail")
    return judged("streamed", asked, expected, f"the same in {len(streamed.chunks)} pieces", "pass")


def _fault(reply: ChatReply, most: int) -> str | None:
    used = reply.used
    if used.answer > most:
        return f"{used.answer} tokens of at most {most}"
    if reply.finish == "length" and used.answer != most:
        return f"cut at {used.answer} tokens of {most}"
    if reply.content and not used.answer:
        return "an answer of no tokens"
    total = (reply.raw or {}).get("usage", {}).get("total_tokens")
    if total is not None and total != used.prompt + used.answer:
        return f"total_tokens {total} for {used.prompt} and {used.answer}"
    return None
