"""Tool calls: name and arguments by the schema, streamed as they come whole, and made of the model's own accord."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from flagrelease.validate.behaviour.signs import calls_tool
from flagrelease.validate.endpoint.replies import ChatReply, StreamedReply, Unsupported
from flagrelease.validate.preflight.check import PreflightCheck, judged
from flagrelease.validate.preflight.ending import markup_in
from flagrelease.validate.preflight.prompts import WEATHER

_WHOLE = 'a name, JSON arguments by its schema, an id, finish_reason "tool_calls"'


def judge_call(forced: ChatReply | Unsupported) -> PreflightCheck:
    """A call that the request requires."""
    asked = 'a question with one tool, tool_choice "required"'
    if isinstance(forced, Unsupported):
        return judged("tool-call", asked, _WHOLE, forced.told, "fail" if forced.malformed else "not-shown")
    fault = fault_of(forced)
    if fault is None:
        return judged("tool-call", asked, _WHOLE, f"{_shown(forced)}, finish_reason {forced.finish!r}", "pass")
    if forced.finish == "length":
        return judged("tool-call", asked, _WHOLE, f"cut at {forced.used.answer} tokens: {fault}", "not-shown")
    return judged("tool-call", asked, _WHOLE, fault, "fail")


def judge_own_call(own: ChatReply | Unsupported) -> PreflightCheck:
    """A call that the model makes by itself, in the format that it was taught: whether the server reads that."""
    asked = 'the same question, tool_choice "auto"'
    if isinstance(own, Unsupported):
        return judged("own-call", asked, _WHOLE, own.told, "fail")
    if found := markup_in(own.content):
        return judged("own-call", asked, _WHOLE, f"{found} in the content: nobody reads the model's calls", "fail")
    if not own.tool_calls:
        return judged("own-call", asked, _WHOLE, "an answer without a call", "not-shown")
    fault = fault_of(own, finishes=("tool_calls",))
    if fault is not None and own.finish != "length":
        return judged("own-call", asked, _WHOLE, fault, "fail")
    return judged("own-call", asked, _WHOLE, _shown(own), "pass" if fault is None else "not-shown")


def judge_streamed_call(whole: ChatReply | Unsupported, streamed: StreamedReply | Unsupported) -> PreflightCheck:
    """The pieces of a call make the whole one, and the first of them has its id and its name."""
    asked, expected = "the required call again, as a stream", "pieces that make the same call, and [DONE]"
    if isinstance(whole, Unsupported) or not whole.tool_calls:
        return judged("tool-stream", asked, expected, "there was no call to compare with", "not-shown")
    if isinstance(streamed, Unsupported):
        return judged("tool-stream", asked, expected, streamed.told, "fail")
    if fault := _fault_of_pieces(streamed):
        return judged("tool-stream", asked, expected, fault, "fail")
    made = [(call.name, _value(call.arguments)) for call in streamed.reply.tool_calls]
    if made != [(call.name, _value(call.arguments)) for call in whole.tool_calls]:
        return judged("tool-stream", asked, expected, f"{_shown(streamed.reply)} for {_shown(whole)}", "fail")
    if streamed.reply.finish != whole.finish:
        said = f"finish_reason {streamed.reply.finish!r} for {whole.finish!r}"
        return judged("tool-stream", asked, expected, said, "fail")
    return judged("tool-stream", asked, expected, f"the same in {len(streamed.chunks)} pieces", "pass")


def fault_of(reply: ChatReply, finishes: Iterable[str] = ("tool_calls", "stop")) -> str | None:
    """What is wrong with an answer that should be a call. Servers end a required one with either finish_reason."""
    if not reply.tool_calls:
        found = markup_in(reply.content)
        return f"no call, and {found} in the content" if found else "no call"
    if not calls_tool(reply.tool_calls, (WEATHER,)):
        return f"a call that does not follow the schema: {_shown(reply)}"
    if reply.raw is not None:
        ids = [call.get("id") for call in _calls_of(reply.raw)]
        if not all(isinstance(each, str) and each for each in ids) or len(set(ids)) < len(ids):
            return "calls without ids of their own"
    if reply.finish not in finishes:
        return f"finish_reason {reply.finish!r}"
    return None


def _calls_of(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return document["choices"][0]["message"].get("tool_calls") or []


def _fault_of_pieces(streamed: StreamedReply) -> str | None:
    if not streamed.done:
        return "the stream ended without [DONE]"
    begun: set[int] = set()
    for chunk in streamed.chunks:
        for choice in chunk.get("choices") or ():
            for piece in (choice.get("delta") or {}).get("tool_calls") or ():
                index, function = piece.get("index"), piece.get("function") or {}
                if not isinstance(index, int):
                    return "a piece of a call without its index"
                if index not in begun and not (piece.get("id") and function.get("name")):
                    return f"the first piece of call {index} has no id or no name"
                begun.add(index)
    return None


def _value(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _shown(reply: ChatReply) -> str:
    calls = ", ".join(f"{call.name}({call.arguments})" for call in reply.tool_calls)
    return (calls if len(calls) <= 80 else f"{calls[:77]}...") or "no call"
