"""A completion taken apart while it is being written: reasoning, then content, then tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flagrelease.engine.text import held_back
from flagrelease.model.v4.chat import CALLS_OPENING, END_THINK, EOS, ChatFormatError, Mode, ToolCall, parse_tool_calls

Part = Literal["reasoning_content", "content"]
Said = list[tuple[Part, str]]


@dataclass(slots=True)
class CompletionStream:
    """Text in, parts out as soon as no marker can begin in them. Tool calls come at the end, whole."""

    _stage: Part | Literal["calls"]
    _held: str = ""

    @classmethod
    def start(cls, mode: Mode) -> CompletionStream:
        """At the end of a prompt of this mode."""
        return cls("content" if mode == "chat" else "reasoning_content")

    def push(self, text: str) -> Said:
        """What can be said now."""
        self._held += text
        said: Said = []
        while self._stage != "calls":
            stage = self._stage
            marker = END_THINK if stage == "reasoning_content" else CALLS_OPENING
            before, found, after = self._held.partition(marker)
            if not found:
                keep = held_back(before, (marker,))
                before, after = before[: len(before) - keep], before[len(before) - keep :]
            if before:
                said.append((stage, before))
            self._held = after
            if not found:
                break
            self._stage = "content" if stage == "reasoning_content" else "calls"
        return said

    def end(self) -> tuple[Said, tuple[ToolCall, ...]]:
        """What was held back, and the calls.

        A block of calls that was cut off or is malformed is said as content, as it was written: a client that gets text
        where it expected calls can see what happened.
        """
        held, self._held = self._held.removesuffix(EOS), ""
        if self._stage != "calls":
            return [(self._stage, held)] if held else [], ()
        try:
            return [], parse_tool_calls(held)
        except ChatFormatError:
            return [("content", CALLS_OPENING + held)], ()
