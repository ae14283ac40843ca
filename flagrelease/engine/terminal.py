"""Generation at the terminal: one prompt, a file of prompts, a chat. Text goes to stdout, talk to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flagrelease.engine.chat import ChatFormatError, Message, Mode, encode_messages, parse_completion
from flagrelease.engine.jsonl import read_lines
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.scheduler import Scheduler, generate_all
from flagrelease.engine.sequence import Generated
from flagrelease.engine.session import Session
from flagrelease.errors import UsageError

Prompt = str | list[Message]


@dataclass(frozen=True, slots=True)
class Terminal:
    """`mode` "raw" continues text as it is; the others put it in a chat."""

    session: Session
    mode: Mode | Literal["raw"]
    sampling: Sampling

    def answer(self, prompt: str, context: int) -> None:
        """Print the continuation of one prompt while it is being written."""
        scheduler = self._scheduler(1, context)
        if scheduler is not None:
            with _stopping(scheduler):
                self._print(scheduler, self._encode(scheduler, prompt))

    def answer_file(self, path: Path, context: int, rows: int) -> None:
        """Print an answer a line: {"text": .., "finish_reason": ..}, in the order of the file."""
        prompts = read_prompts(path)
        scheduler = self._scheduler(rows, context)
        if scheduler is None:
            return
        with _stopping(scheduler):
            tokens = [self._encode(scheduler, prompt) for prompt in prompts]
            for result in generate_all(scheduler, tokens, self.sampling):
                line = {"text": result.text, "finish_reason": result.finish}
                print(json.dumps(line, ensure_ascii=False), flush=True)

    def chat(self, context: int) -> None:
        """A line is a turn; the end of input ends the chat."""
        scheduler = self._scheduler(1, context)
        if scheduler is None:
            return
        messages: list[Message] = []
        with _stopping(scheduler):
            while (said := _ask()) is not None:
                messages.append({"role": "user", "content": said})
                messages.append(self._turn(self._print(scheduler, self._encode(scheduler, messages))))

    def _scheduler(self, rows: int, context: int) -> Scheduler | None:
        """On the leader; the other ranks work here until it is done, and get None."""
        runner = self.session.runner(rows, context)
        if self.session.model.groups.is_leader:
            return Scheduler(runner, self.session.tokenizer())
        runner.follow()
        return None

    def _encode(self, scheduler: Scheduler, prompt: Prompt) -> list[int]:
        if self.mode == "raw":
            if not isinstance(prompt, str):
                raise UsageError("mode raw continues text, not messages")
            return scheduler.tokenizer.encode(prompt)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return scheduler.tokenizer.encode(encode_messages(messages, self.mode))

    def _print(self, scheduler: Scheduler, tokens: Sequence[int]) -> str:
        scheduler.submit(tokens, self.sampling)
        result = Generated()
        while scheduler.busy:
            for event in scheduler.step():
                result.add(event)
                print(event.text, end="", flush=True)
        print(flush=True)
        return result.text

    def _turn(self, text: str) -> Message:
        """What the model wrote, as a message of the history."""
        assert self.mode != "raw"
        try:
            parsed = parse_completion(text, self.mode)
        except ChatFormatError:  # no tools were offered: calls are only text here
            return {"role": "assistant", "content": text}
        return {"role": "assistant", "content": parsed.content, "reasoning_content": parsed.reasoning}


@contextmanager
def _stopping(scheduler: Scheduler) -> Iterator[None]:
    """At the end, however it comes, the other ranks are let go."""
    try:
        yield
    finally:
        scheduler.runner.stop()


def read_prompts(path: Path) -> list[Prompt]:
    """A JSONL file of strings and lists of messages.

    Raises:
        UsageError: the file is not there, or a line is neither.
    """
    prompts: list[Prompt] = []
    for number, line in enumerate(read_lines(path), 1):
        if not isinstance(line, str) and not (
            line and isinstance(line, list) and all(isinstance(m, dict) for m in line)
        ):
            raise UsageError(f"{path}: line {number}: a JSON string or a list of messages is expected")
        prompts.append(line)
    return prompts


def _ask() -> str | None:
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None
