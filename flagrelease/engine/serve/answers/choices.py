"""An answer of OpenAI's completions or chat completions: the choices of a request in one document, or as chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from flagrelease.engine.batch.sequence import Event
from flagrelease.engine.json_line import json_line
from flagrelease.engine.serve.answers.openai import ChatAnswer, CompletionAnswer, usage
from flagrelease.engine.serve.answers.written import written
from flagrelease.engine.serve.requests.protocol import GenerationRequest


class Choices:
    """The choices of a request, one for each of its sequences."""

    def __init__(
        self, answers: Sequence[ChatAnswer | CompletionAnswer], request: GenerationRequest, model: str, kind: str
    ) -> None:
        """`kind`: OpenAI's name of the whole document."""
        self._answers, self._request, self._kind, self._streaming = answers, request, kind, request.streaming
        self._unsent = True
        self._frame = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        chunk = "chat.completion.chunk" if kind == "chat.completion" else kind
        # all chunks begin alike, with this much of the document
        self._beginning = f"data: {json_line({**self._frame, 'object': chunk})[:-1]}, "

    def whole(self) -> Iterator[str]:
        """The document, after the last event, as JSON."""
        choices = [{**answer.choice(), "index": n} for n, answer in enumerate(self._answers)]
        beside = self._answers[0].beside()
        return written({**self._frame, "object": self._kind, "choices": choices, **beside, "usage": self._usage()})

    def begin(self) -> list[str]:
        """Nothing is sent before the first token."""
        return []

    def add(self, n: int, event: Event) -> list[str]:
        """Take in an event of the sequence at that place; returns server-sent events if it is streamed."""
        lines: list[str] = []
        if not self._request.stream:
            self._answers[n].take(event)
            return lines
        for choice in self._answers[n].add(event):
            usages: dict[str, Any] = {"usage": None} if self._streaming.include_usage else {}
            if self._streaming.continuous_usage_stats:
                usages = {"usage": self._usage()}
            beside = self._answers[n].beside() if self._unsent else {}
            self._unsent = False
            lines.append(self._line([{**choice, "index": n}], {**beside, **usages}))
        return lines

    def end(self) -> list[str]:
        """The last server-sent events."""
        last = [self._line([], {"usage": self._usage()})] if self._streaming.include_usage else []
        return [*last, "data: [DONE]\n\n"]

    def failed(self, message: str) -> list[str]:
        """What is sent where the engine stops in the middle."""
        error = {"message": message, "type": "server_error", "param": None, "code": None}
        return [f"data: {json_line({'error': error})}\n\n"]

    def _line(self, choices: list[dict[str, Any]], usages: dict[str, Any]) -> str:
        document = {"choices": choices, **usages}
        scored = any(choice.get("logprobs") for choice in choices)
        return f"{self._beginning}{(''.join(written(document)) if scored else json_line(document))[1:]}\n\n"

    def _usage(self) -> dict[str, Any]:
        return usage(self._answers, self._request.n)
