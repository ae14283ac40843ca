"""Answers in OpenAI's form, built up from a sequence's events: streamed choices as they come, and the whole one."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from flagrelease.engine.batch.sequence import Event
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.scores import TokenScore
from flagrelease.engine.serve.answers.spoken import Counted, Spoken
from flagrelease.engine.text import Tokenizer
from flagrelease.model.v4.completion import Said, gather
from flagrelease.model.v4.dsml import Piece
from flagrelease.model.v4.encoded import Opening


class CompletionAnswer(Counted):
    """A choice of /v1/completions."""

    def __init__(self, prompt: list[int], sampling: Sampling, tokenizer: Tokenizer) -> None:
        """The continuation of a prompt. Whoever knows its place in the request sets the choice's `index`."""
        super().__init__(prompt)
        self._sampling, self._tokenizer = sampling, tokenizer
        self._text, self._scores, self._finish = "", list[TokenScore](), "length"
        self._begun = False

    def add(self, event: Event) -> list[dict[str, Any]]:
        """Take an event in; returns the choices of stream chunks that it makes."""
        text = event.text
        if self._sampling.echo and not self._begun:
            text = self._tokenizer.decode(self.prompt) + text
        self._begun = True
        self._text += text
        scores = (*event.prompt_scores, *event.scores)
        self._scores += scores
        self.count(event)
        self._finish = event.finish or self._finish
        if not text and not event.finish:
            return []
        return [self._choice(text, scores, event.finish)]

    def choice(self) -> dict[str, Any]:
        """The whole, after the last event."""
        return self._choice(self._text, self._scores, self._finish)

    def _choice(self, text: str, scores: Sequence[TokenScore], finish: str | None) -> dict[str, Any]:
        logprobs = None if self._sampling.logprobs is None else self._logprobs(scores)
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        tokens = [self._tokenizer.decode([score.token]) for score in scores]
        offsets = [sum(map(len, tokens[:n])) for n in range(len(tokens))]
        return {
            "tokens": tokens,
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [
                None if score.logprob is None else {self._tokenizer.decode([t]): p for t, p in score.top}
                for score in scores
            ],
            "text_offset": offsets,
        }


class ChatAnswer(Spoken):
    """The choice of /v1/chat/completions: content, reasoning_content and tool calls apart."""

    def __init__(self, prompt: list[int], opening: Opening, sampling: Sampling, tokenizer: Tokenizer) -> None:
        """The answer to a prompt that ended in `opening`."""
        super().__init__(prompt, opening)
        self._sampling, self._tokenizer = sampling, tokenizer
        self._opening, self._pieces, self._ids = opening, list[Said | Piece](), list[str]()
        self._scores, self._finish, self._begun = list[TokenScore](), "length", False

    def add(self, event: Event) -> list[dict[str, Any]]:
        """Take an event in; returns the choices of stream chunks that it makes."""
        pieces = self.pieces(event)
        self._scores += event.scores
        self._pieces += pieces
        deltas = [self._delta(piece) for piece in pieces]  # begins calls
        if event.finish:
            self._finish = "tool_calls" if self._ids and event.finish == "stop" else event.finish
        return self._choices(deltas, event)

    def _delta(self, piece: Said | Piece) -> dict[str, Any]:
        if isinstance(piece, Said):
            return {piece.part: piece.text}
        function = {"arguments": piece.arguments}
        if piece.name is None:
            return {"tool_calls": [{"index": piece.number, "function": function}]}
        self._ids.append(f"call_{uuid.uuid4().hex}")
        call = {"id": self._ids[-1], "type": "function", "function": {"name": piece.name, **function}}
        return {"tool_calls": [{"index": piece.number, **call}]}

    def _choices(self, deltas: list[dict[str, Any]], event: Event) -> list[dict[str, Any]]:
        if not self._begun:
            deltas.insert(0, {"role": "assistant", "content": ""})
            self._begun = True
        if event.finish or (event.scores and not deltas):
            deltas.append({})
        choices: list[dict[str, Any]] = [
            {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas
        ]
        if choices:
            choices[-1]["logprobs"] = self._logprobs(event.scores)
            choices[-1]["finish_reason"] = self._finish if event.finish else None
        return choices

    def choice(self) -> dict[str, Any]:
        """The whole, after the last event."""
        whole = gather(self._pieces, self._opening, as_taught=self.as_taught)
        message: dict[str, Any] = {"role": "assistant", "content": whole.content}
        if whole.reasoning is not None:
            message["reasoning_content"] = whole.reasoning
        if whole.tool_calls:
            message["content"] = whole.content or None
            message["tool_calls"] = [
                {"id": id_, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for id_, call in zip(self._ids, whole.tool_calls, strict=True)
            ]
        logprobs = self._logprobs(self._scores)
        return {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": self._finish}

    def _logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        if self._sampling.logprobs is None:
            return None
        content = [
            {**self._token(s.token, s.logprob), "top_logprobs": [self._token(*each) for each in s.top]} for s in scores
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self._tokenizer.decode([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8"))}


def usage(answers: Sequence[Counted], each: int = 1) -> dict[str, Any]:
    """Tokens in and out, of all answers of a request; drafts under OpenAI's names for predicted tokens.

    Args:
        answers: those of a prompt beside each other.
        each: how many a prompt has. Its tokens count once.
    """
    prompt, completion = sum(len(a.prompt) for a in answers[::each]), sum(a.generated for a in answers)
    drafted, accepted = sum(a.drafted for a in answers), sum(a.accepted for a in answers)
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    if not drafted:
        return counts
    details = {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": drafted - accepted}
    return {**counts, "completion_tokens_details": details}
