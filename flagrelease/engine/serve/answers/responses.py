"""An answer of OpenAI's Responses: a response with its items, whole or as numbered events."""

from __future__ import annotations

import time
import uuid
from typing import Any

from flagrelease.engine.batch.sequence import Event
from flagrelease.engine.json_line import json_line
from flagrelease.engine.serve.answers.blocks import AnswerBlock, AnswerBlocks, Change
from flagrelease.engine.serve.asked import AskedChat
from flagrelease.engine.serve.requests.responses import ChosenFunction, ResponsesRequest

_PARTS = {"text": "output_text", "reasoning": "reasoning_text"}
_GROWN = {
    "text": "response.output_text",
    "reasoning": "response.reasoning_text",
    "call": "response.function_call_arguments",
}
_IDS = {"text": "msg", "reasoning": "rs", "call": "fc"}


class ResponseAnswer:
    """The answer to a request of one sequence."""

    def __init__(self, request: ResponsesRequest, asked: AskedChat, model: str) -> None:
        """`model` is the name under which it is served."""
        self._request, self._model = request, model
        self._blocks = AnswerBlocks(asked.prompt, asked.opening)
        self._id, self._created = f"resp_{uuid.uuid4().hex}", int(time.time())
        self._sent = 0

    def whole(self) -> str:
        """The response, after the last event, as JSON."""
        return json_line(self._response(self._status))

    def begin(self) -> list[str]:
        """A stream's first events."""
        response = self._response("in_progress")
        return [self._line(f"response.{kind}", response=response) for kind in ("created", "in_progress")]

    def add(self, n: int, event: Event) -> list[str]:
        """Take in an event of the only sequence; returns the stream's events that it makes, if it is streamed."""
        changes = list(self._blocks.changes(event))
        return [line for change in changes for line in self._lines(change)] if self._request.stream else []

    def end(self) -> list[str]:
        """A stream's last event."""
        return [self._line(f"response.{self._status}", response=self._response(self._status))]

    def failed(self, message: str) -> list[str]:
        """A stream's last event where the engine stops in the middle."""
        error = {"code": "server_error", "message": message}
        return [self._line("response.failed", response={**self._response("failed"), "error": error})]

    @property
    def _status(self) -> str:
        return "incomplete" if self._blocks.finish == "length" else "completed"

    def _line(self, kind: str, **keys: Any) -> str:
        document = {"type": kind, "sequence_number": self._sent, **keys}
        self._sent += 1
        return f"event: {kind}\ndata: {json_line(document)}\n\n"

    def _lines(self, change: Change) -> list[str]:
        block = change.block
        at: dict[str, Any] = {"item_id": self._key(_IDS[block.kind], block), "output_index": block.place}
        inside = at if block.kind == "call" else {**at, "content_index": 0}
        logprobs: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
        if change.what == "grown":
            return [self._line(f"{_GROWN[block.kind]}.delta", **inside, delta=change.text, **logprobs)]
        item = self._item(block, ended=change.what == "ended")
        if change.what == "begun":
            lines = [self._line("response.output_item.added", output_index=block.place, item=item)]
            if block.kind != "call":
                lines.append(self._line("response.content_part.added", **inside, part=_part(block)))
            return lines
        if block.kind == "call":
            said = {"name": block.name, "arguments": block.text}
            lines = [self._line("response.function_call_arguments.done", **inside, **said)]
        else:
            lines = [
                self._line(f"{_GROWN[block.kind]}.done", **inside, text=block.text, **logprobs),
                self._line("response.content_part.done", **inside, part=_part(block)),
            ]
        return [*lines, self._line("response.output_item.done", output_index=block.place, item=item)]

    def _key(self, kind: str, block: AnswerBlock) -> str:
        return f"{kind}_{self._id.removeprefix('resp_')}{block.place}"

    def _item(self, block: AnswerBlock, *, ended: bool = True) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._key(_IDS[block.kind], block)}
        item["status"] = "in_progress" if not ended else "completed" if block.whole else "incomplete"
        if block.kind == "call":
            said = {"call_id": self._key("call", block), "name": block.name, "arguments": block.text}
            return {"type": "function_call", **item, **said}
        content = [_part(block)] if ended else []
        if block.kind == "reasoning":
            return {"type": "reasoning", **item, "summary": [], "content": content, "encrypted_content": None}
        return {"type": "message", **item, "role": "assistant", "content": content}

    def _response(self, status: str) -> dict[str, Any]:
        request, choice = self._request, self._request.tool_choice
        over = status != "in_progress"
        sent = request.model_dump(include={"text", "tools"}, by_alias=True, exclude_none=True)
        form = sent["text"].get("format", {"type": "text"})
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self._model,
            "output": [self._item(block) for block in self._blocks.blocks] if over else [],
            "usage": self._usage() if over else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": request.max_tool_calls,
            "metadata": request.metadata or {},
            "parallel_tool_calls": request.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": request.reasoning.effort, "summary": None},
            "store": False,
            "background": False,
            "service_tier": "default",
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_logprobs": 0,
            "text": {"format": form, "verbosity": "medium"},
            "tool_choice": choice.model_dump() if isinstance(choice, ChosenFunction) else choice,
            "tools": [{"strict": None, "parameters": None, **tool} for tool in sent["tools"]],
            "truncation": "disabled",
            "user": request.user,
        }

    def _usage(self) -> dict[str, Any]:
        blocks = self._blocks
        return {
            "input_tokens": len(blocks.prompt),
            "input_tokens_details": {"cached_tokens": blocks.cached, "cache_write_tokens": 0},
            "output_tokens": blocks.generated,
            "output_tokens_details": {"reasoning_tokens": blocks.reasoned},
            "total_tokens": len(blocks.prompt) + blocks.generated,
        }


def _part(block: AnswerBlock) -> dict[str, Any]:
    part: dict[str, Any] = {"type": _PARTS[block.kind], "text": block.text}
    return part if block.kind == "reasoning" else {**part, "annotations": [], "logprobs": []}
