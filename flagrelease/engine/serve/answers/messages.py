"""An answer of Anthropic's Messages: a message with its blocks, whole or as events."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from flagrelease.engine.batch.sequence import Event
from flagrelease.engine.json_line import json_line
from flagrelease.engine.serve.answers.blocks import AnswerBlock, AnswerBlocks, Change
from flagrelease.engine.serve.answers.written import Written, written
from flagrelease.engine.serve.asked import AskedChat
from flagrelease.engine.serve.requests.messages import MessagesRequest
from flagrelease.model.v4.json_text import is_json

_DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


class MessageAnswer:
    """The answer to a request of one sequence."""

    def __init__(self, request: MessagesRequest, asked: AskedChat, model: str) -> None:
        """`model` is the name under which it is served."""
        self._model, self._request = model, request
        self._blocks = AnswerBlocks(asked.prompt, asked.opening)
        self._ends_with_context = asked.samplings[0].max_tokens is None
        self._id = f"msg_{uuid.uuid4().hex}"

    def whole(self) -> Iterator[str]:
        """The message, after the last event, as JSON."""
        content = [self._block(block) for block in self._blocks.blocks]
        ends = {"stop_reason": self._reason, "stop_sequence": self._blocks.stopped_by, "usage": self._usage()}
        return written({**self._frame(), "content": content, **ends})

    def begin(self) -> list[str]:
        """A stream's first events."""
        message = {**self._frame(), "content": [], "stop_reason": None, "stop_sequence": None, "usage": self._usage()}
        return [_line("message_start", message=message), _line("ping")]

    def add(self, n: int, event: Event) -> list[str]:
        """Take in an event of the only sequence; returns the stream's events that it makes, if it is streamed."""
        changes = list(self._blocks.changes(event))
        return [self._shown(change) for change in changes] if self._request.stream else []

    def end(self) -> list[str]:
        """A stream's last events."""
        delta = {"stop_reason": self._reason, "stop_sequence": self._blocks.stopped_by}
        return [_line("message_delta", delta=delta, usage=self._usage()), _line("message_stop")]

    def failed(self, message: str) -> list[str]:
        """A stream's last event where the engine stops in the middle."""
        return [_line("error", error={"type": "api_error", "message": message})]

    @property
    def _reason(self) -> str:
        blocks = self._blocks
        if blocks.finish == "length":  # a constraint that took too much work ends an answer so, too
            return "model_context_window_exceeded" if self._ends_with_context else "max_tokens"
        if blocks.stopped_by is not None:
            return "stop_sequence"
        return "tool_use" if any(block.kind == "call" for block in blocks.blocks) else "end_turn"

    def _frame(self) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._model}

    def _usage(self) -> dict[str, Any]:
        return {
            "input_tokens": len(self._blocks.prompt) - self._blocks.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self._blocks.cached,
            "output_tokens": self._blocks.generated,
            "output_tokens_details": {"thinking_tokens": self._blocks.reasoned},
            "service_tier": "standard",
        }

    def _shown(self, change: Change) -> str:
        place = change.block.place
        if change.what == "begun":
            return _line("content_block_start", index=place, content_block=self._begun(change.block))
        if change.what == "ended":
            return _line("content_block_stop", index=place)
        kind, key = _DELTAS[change.block.kind]
        return _line("content_block_delta", index=place, delta={"type": kind, key: change.text})

    def _begun(self, block: AnswerBlock) -> dict[str, Any]:
        if block.kind == "text":
            return {"type": "text", "text": ""}
        if block.kind == "reasoning":
            return {"type": "thinking", "thinking": "", "signature": ""}
        key = f"toolu_{self._id.removeprefix('msg_')}{block.place}"
        return {"type": "tool_use", "id": key, "name": block.name, "input": {}}

    def _block(self, block: AnswerBlock) -> dict[str, Any]:
        """The whole block. What a call was given is the text that the model wrote: no number is rounded."""
        begun = self._begun(block)
        if block.kind == "call":
            return {**begun, "input": Written(_input(block.text))}
        return {**begun, "text" if block.kind == "text" else "thinking": block.text}


def _input(arguments: str) -> str:
    """An object's JSON; of a call that was cut off, what came of it."""
    if is_json(arguments):
        return arguments
    try:
        return json_line(from_json(arguments, allow_partial="trailing-strings"))
    except ValueError:
        return "{}"


def _line(kind: str, **keys: Any) -> str:
    return f"event: {kind}\ndata: {json_line({'type': kind, **keys})}\n\n"
