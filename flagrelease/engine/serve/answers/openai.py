"""Choices in OpenAI's form, built up from a sequence's events: chunks of a stream as they come, or the whole."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any

from flagrelease.engine.batch.sequence import Event
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.scores import TokenScore
from flagrelease.engine.serve.answers.logprobs import Forms, Kept, PromptScores
from flagrelease.engine.serve.answers.spoken import Counted, Spoken
from flagrelease.engine.serve.answers.written import Series
from flagrelease.engine.serve.requests.protocol import Shown
from flagrelease.engine.text import Tokenizer
from flagrelease.model.v4.completion import Said, gather
from flagrelease.model.v4.dsml import Piece
from flagrelease.model.v4.encoded import Opening, Part


class CompletionAnswer(Counted):
    """A choice of /v1/completions. It takes its events either by `take`, for `choice`, or by `add`."""

    def __init__(self, prompt: list[int], sampling: Sampling, tokenizer: Tokenizer, shown: Shown) -> None:
        """The continuation of a prompt. Whoever knows its place in the request sets the choice's `index`."""
        super().__init__(prompt)
        self._sampling, self._shown = sampling, shown
        self._forms = Forms(tokenizer, sampling.logprobs or 0, as_ids=shown.as_ids)
        self._prompt_scores = PromptScores(sampling, tokenizer)
        self._echoed, self._echoes = tokenizer.stream(), deque(prompt if sampling.echo else ())
        self._texts, self._kept, self._ids = list[str](), Kept(sampling.logprobs or 0), list[int]()
        self._begun, self._finish = False, "length"

    def take(self, event: Event) -> None:
        """Keep what an event brings for the whole."""
        text, placed = self._come(event)
        self._texts.append(text)
        self._kept.add(placed)
        self._finish = event.finish or self._finish

    def choice(self) -> dict[str, Any]:
        """The whole, after the last event."""
        prompt_scores = self._prompt_scores.shown()
        return {**self._choice("".join(self._texts), self._kept, self._finish), **prompt_scores, **self._tokens()}

    def add(self, event: Event) -> list[dict[str, Any]]:
        """Take an event in; returns the choices of stream chunks that it makes."""
        text, placed = self._come(event)
        if not (text or placed or event.finish or (self._shown.ids and self._ids)):
            return []
        choice = {**self._choice(text, placed, event.finish), **self._tokens()}
        self._ids, self._begun = [], True
        return [choice]

    def beside(self) -> dict[str, Any]:
        """Nothing stands beside the choices."""
        return {}

    def _come(self, event: Event) -> tuple[str, list[tuple[int, TokenScore]]]:
        """Text, and tokens with their places in all of it."""
        self.count(event)
        self._prompt_scores.take(event)
        if self._shown.ids:
            self._ids += event.tokens
        text, placed = self._echo(event)
        before = self._echoed.length
        return text + event.text, placed + [(before + score.begin, score) for score in event.scores]

    def _echo(self, event: Event) -> tuple[str, list[tuple[int, TokenScore]]]:
        """The prompt as far as it is scored, or at once."""
        text, placed = list[str](), list[tuple[int, TokenScore]]()
        scored = self._sampling.logprobs is not None
        for n in range(len(event.prompt_scores) if scored else len(self._echoes)):
            if not self._echoes:
                break
            text.append(self._echoed.push(self._echoes.popleft()))
            if scored:
                placed.append((self._echoed.begin, event.prompt_scores[n]))
        if text and not self._echoes:
            text.append(self._echoed.rest())
        return "".join(text), placed

    def _choice(self, text: str, placed: Kept | Sequence[tuple[int, TokenScore]], finish: str | None) -> dict[str, Any]:
        logprobs = None if self._sampling.logprobs is None else self._forms.completion(placed)
        if logprobs is not None and not isinstance(placed, Kept):
            logprobs = {name: list(values) for name, values in logprobs.items()}
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _tokens(self) -> dict[str, Any]:
        """Ids of the new tokens, and of the prompt's at the beginning."""
        if not self._shown.ids:
            return {}
        return {"token_ids": self._ids, **({} if self._begun else {"prompt_token_ids": self.prompt})}


class ChatAnswer(Spoken):
    """The choice of /v1/chat/completions: content, reasoning_content and tool calls apart.

    It takes its events either by `take`, for `choice`, or by `add`. Log-probabilities are those of the tokens that
    content and reasoning show; the marks between them, calls and the end token are in neither.
    """

    def __init__(
        self, prompt: list[int], opening: Opening, sampling: Sampling, tokenizer: Tokenizer,
        shown: Shown,
    ) -> None:  # fmt: skip
        """The answer to a prompt that ended in `opening`."""
        super().__init__(prompt, opening)
        self._opening, self._sampling, self._shown = opening, sampling, shown
        self._forms = Forms(tokenizer, sampling.logprobs or 0, as_ids=shown.as_ids)
        self._prompt_scores = PromptScores(sampling, tokenizer)
        self._pieces, self._calls, self._ids = list[Said | Piece](), list[str](), list[int]()
        self._unsaid, self._begun, self._finish = deque[TokenScore](), False, "length"
        self._kept: dict[Part, Kept] = {part: Kept(sampling.logprobs or 0) for part in ("content", "reasoning_content")}

    def take(self, event: Event) -> None:
        """Keep what an event brings for the whole."""
        for piece in self._come(event):
            self._pieces.append(piece)
            if isinstance(piece, Said):
                self._kept[piece.part].add((0, score) for score in self._shown_by(piece))

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
                for id_, call in zip(self._calls, whole.tool_calls, strict=True)
            ]
        logprobs: dict[str, Any] | None = None
        if self._sampling.logprobs is not None:
            logprobs = {"content": self._listed("content"), "refusal": None}
            if whole.reasoning is not None:
                logprobs["reasoning_content"] = self._listed("reasoning_content")
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": self._finish}
        return {**choice, **({"token_ids": self._ids} if self._shown.ids else {})}

    def _listed(self, part: Part) -> Series:
        return Series(lambda: self._forms.chat(self._kept[part].scores()))

    def beside(self) -> dict[str, Any]:
        """What stands beside the choices: about the prompt."""
        return {**self._prompt_scores.shown(), **({"prompt_token_ids": self.prompt} if self._shown.ids else {})}

    def add(self, event: Event) -> list[dict[str, Any]]:
        """Take an event in; returns the choices of stream chunks that it makes."""
        pieces = self._come(event)
        choices: list[dict[str, Any]] = []
        if not self._begun:
            choices.append(_chunk({"role": "assistant", "content": ""}))
            self._begun = True
        for piece in pieces:
            choices.append(_chunk(self._delta(piece)))
            if isinstance(piece, Said) and self._sampling.logprobs is not None:
                listed = list(self._forms.chat(self._shown_by(piece)))
                choices[-1]["logprobs"] = {"content": [], "refusal": None, piece.part: listed}
        if event.finish:
            choices.append({**_chunk({}), "finish_reason": self._finish})
        if self._shown.ids and choices:
            choices[-1]["token_ids"], self._ids = self._ids, []
        return choices

    def _come(self, event: Event) -> list[Said | Piece]:
        self._prompt_scores.take(event)
        if self._shown.ids:
            self._ids += event.tokens
        self._unsaid += event.scores
        pieces = self.pieces(event)
        self._calls += [f"call_{uuid.uuid4().hex}" for piece in pieces if isinstance(piece, Piece) and piece.name]
        if event.finish:
            self._finish = "tool_calls" if self._calls and event.finish == "stop" else event.finish
        return pieces

    def _shown_by(self, said: Said) -> list[TokenScore]:
        """Tokens of which `said` shows the first character that is shown at all."""
        shown = list[TokenScore]()
        while self._unsaid and self._unsaid[0].begin < said.at + len(said.text):
            score = self._unsaid.popleft()
            if max(score.begin, said.at) < score.end:
                shown.append(score)
        return shown

    def _delta(self, piece: Said | Piece) -> dict[str, Any]:
        if isinstance(piece, Said):
            return {piece.part: piece.text}
        function = {"arguments": piece.arguments}
        if piece.name is None:
            return {"tool_calls": [{"index": piece.number, "function": function}]}
        named = {"id": self._calls[piece.number], "type": "function", "function": {"name": piece.name, **function}}
        return {"tool_calls": [{"index": piece.number, **named}]}


def _chunk(delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}


def usage(answers: Sequence[Counted], each: int = 1) -> dict[str, Any]:
    """Tokens in and out, of all answers of a request; drafts under OpenAI's names for predicted tokens,
    and prompts' tokens that were read before, where there are any.

    Args:
        answers: those of a prompt beside each other.
        each: how many a prompt has. Its tokens count once.
    """
    prompt, completion = sum(len(a.prompt) for a in answers[::each]), sum(a.generated for a in answers)
    drafted, accepted = sum(a.acceptance.drafts for a in answers), sum(a.acceptance.right for a in answers)
    cached = sum(a.cached for a in answers[::each])
    counts: dict[str, Any] = {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        **({"prompt_tokens_details": {"cached_tokens": cached}} if cached else {}),
    }  # fmt: skip
    if not drafted:
        return counts
    details = {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": drafted - accepted}
    return {**counts, "completion_tokens_details": details}
