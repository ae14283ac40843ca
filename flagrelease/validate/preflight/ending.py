"""Where answers end: at the end token, which is not shown, or at a text that the request names."""

from __future__ import annotations

import re

from flagrelease.validate.endpoint.replies import ChatReply, Unsupported
from flagrelease.validate.preflight.answers import Answers, first_refusal
from flagrelease.validate.preflight.check import PreflightCheck, judged

_MARKUP = re.compile(r"<｜[^<>｜]{1,40}｜>|｜DSML｜|</?think>")


def markup_in(text: str) -> str | None:
    """The first special token of the chat format in a text."""
    found = _MARKUP.search(text)
    return found[0] if found else None


def judge_ends(answers: Answers, most: int) -> PreflightCheck:
    """Short answers end by themselves. `most`: tokens that each could have."""
    asked, expected = "short answers", 'finish_reason "stop" before the limit of tokens'
    came = [reply for reply in answers if isinstance(reply, ChatReply)]
    if not came:
        return judged("ends", asked, expected, first_refusal(answers), "not-shown")
    ended = [reply for reply in came if reply.finish == "stop"]
    odd = [reply.finish for reply in came if reply.finish not in ("stop", "length")]
    if odd:
        return judged("ends", asked, expected, f"finish_reason {odd[0]!r}", "fail")
    said = f"{len(ended)} of {len(came)} ended, the others were cut at {most} tokens"
    if ended:
        return judged("ends", asked, expected, said, "pass")
    return judged("ends", asked, expected, f"{said}: no end token was seen to end one", "not-shown")


def judge_markup(answers: Answers) -> PreflightCheck:
    """No special token of the chat format is in what an answer says."""
    asked, expected = "the same answers, and one with tools", "no special token in any content"
    came = [reply for reply in answers if isinstance(reply, ChatReply)]
    found = next((each for reply in came if (each := markup_in(reply.content))), None)
    if found is not None:
        return judged("no-markup", asked, expected, f"{found} in a content", "fail")
    if not any(reply.content for reply in came):
        return judged("no-markup", asked, expected, "no answer has a content", "not-shown")
    return judged("no-markup", asked, expected, f"none in {len(came)} contents", "pass")


def choose_stop(text: str) -> str | None:
    """A piece from the middle of a greedy answer, to be its stop string; None: it is too short, or no plain text."""
    plain = re.compile(r"[ -~]{2,}")
    for start in range(len(text) // 3, len(text) - 1):
        piece = text[start : start + 3]
        if plain.fullmatch(piece) and text.find(piece) == start > 0 and piece.strip():
            return piece
    return None


def judge_stop(
    whole: ChatReply | Unsupported, stop: str | None, stopped: ChatReply | Unsupported | None
) -> PreflightCheck:
    """The same greedy answer, cut before the stop string.

    Args:
        whole: the answer without it.
        stop: a text in it; None: there is none.
        stopped: the answer to the request that names it.
    """
    asked, expected = "a greedy answer again, with a piece of it as `stop`", "the text up to there, finish_reason stop"
    if isinstance(whole, Unsupported) or stop is None or stopped is None:
        return judged("stop-string", asked, expected, "there was no answer with a text to stop at", "not-shown")
    if isinstance(stopped, Unsupported):
        return judged("stop-string", asked, expected, stopped.told, "fail")
    begun = whole.content[: whole.content.index(stop)]
    if stopped.content == begun and stopped.finish == "stop":
        return judged("stop-string", asked, expected, f"cut after {len(begun)} characters", "pass")
    if stop in stopped.content:
        return judged(
            "stop-string", asked, expected, f"{len(stopped.content)} characters, the stop text in them", "fail"
        )
    if stopped.content == begun:
        return judged("stop-string", asked, expected, f"cut there, but finish_reason {stopped.finish!r}", "fail")
    return judged("stop-string", asked, expected, "another answer: see greedy", "not-shown")
