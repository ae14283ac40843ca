"""An answer of OpenAI's completions or chat completions: the choices of a request in one document, or as chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from flagrelease.engine.batch.sequence import Event
from flagrelease.engine.json_line import json_line
from flagrelease.engine.serve.answers.openai import ChatAnswer, CompletionAnswer, usage
from flagrelease.engine.serve.requests.protocol import GenerationRequest


class Choices:
    """The choices of a request, one for each of its sequences."""

    def __init__(
        self, answers: Sequence[ChatAnswer | CompletionAnswer], request: GenerationRequest, model: str, kind: str
    ) -> None:
        """`kind`: OpenAI's name of the whole document."""
        self._answers, self._request, self._kind = answers, request, kind
        self._frame = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self) -> str:
        """The document, after the last event, as JSON."""
        choices = [{**answer.choice(), "index": n} for n, answer in enumerate(self._answers)]
        return json_line({**self._frame, "object": self._kind, "choices": choices, "usage": self._usage()})

    def begin(self) -> list[str]:
        """Nothing is sent before the first token."""
        return []

    def add(self, n: int, event: Event) -> list[str]:
        """Take in an event of the sequence at that place; returns the server-sent events that it makes."""
        lines: list[str] = []
        for choice in self._answers[n].add(event):
            usages: dict[str, Any] = {"usage": None} if self._request.streaming.include_usage else {}
            if self._request.streaming.continuous_usage_stats:
                usages = {"usage": self._usage()}
            lines.append(self._line([{**choice, "index": n}], usages))
        return lines

    def end(self) -> list[str]:
        """The last server-sent events."""
        last = [self._line([], {"usage": self._usage()})] if self._request.streaming.include_usage else []
        return [*last, "data: [DONE]\n\n"]

    def failed(self, message: str) -> list[str]:
        """What is sent where the engine stops in the middle."""
        error = {"message": message, "type": "server_error", "param": None, "code": None}
        return [f"data: {json_line({'error': error})}\n\n"]

    def _line(self, choices: list[dict[str, Any]], usages: dict[str, Any]) -> str:
        kind = "chat.completion.chunk" if self._kind == "chat.completion" else self._kind
        return f"data: {json_line({**self._frame, 'object': kind, 'choices': choices, **usages})}\n\n"

    def _usage(self) -> dict[str, Any]:
        return usage(self._answers, self._request.n)
