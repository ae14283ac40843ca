"""A chat at the terminal: what is said is kept, an answer can be stopped, and nothing that it lacks stays unseen."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from flagrelease.console import say
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.batch.sequence import Generated
from flagrelease.engine.generate.turns import HELP, Turns
from flagrelease.engine.sampling import Sampling
from flagrelease.errors import UsageError
from flagrelease.model.chats import encode_messages
from flagrelease.model.turns import Message
from flagrelease.model.v4.completion import parse_completion
from flagrelease.model.v4.efforts import Effort
from flagrelease.model.v4.encoded import Opening


@dataclass(slots=True)
class Chat:
    """One conversation. Answers go to stdout, talk about them to stderr."""

    scheduler: Scheduler
    effort: Effort
    sampling: Sampling
    messages: list[Message] = field(default_factory=list)

    def run(self, turns: Turns) -> None:
        """Answer each turn, up to the end of input.

        Raises:
            UsageError: a turn of a file or a pipe cannot be answered. At a terminal it is told, and forgotten.
        """
        if turns.interactive:
            say(HELP)
        for said in turns:
            self.messages.append({"role": "user", "content": said})
            try:
                self._answer()
            except UsageError as error:
                if not turns.interactive:
                    raise
                self.messages.pop()
                say(f"{error}; this turn is forgotten")

    def _answer(self) -> None:
        with listening() as stopped:
            chat = encode_messages(self.messages, self.effort)
            result = stream(self.scheduler, self.scheduler.tokenizer.encode(chat), self.sampling, stopped)
        if stopped():
            say("(stopped)")
        else:
            tell_what_lacks(result, chat.opening)
        parsed = parse_completion(result.text, chat.opening)
        self.messages.append({"role": "assistant", "content": parsed.content, "reasoning_content": parsed.reasoning})


def stream(scheduler: Scheduler, tokens: Sequence[int], sampling: Sampling, stopped: Callable[[], bool]) -> Generated:
    """Print an answer while it is written, up to its end or until `stopped` says so."""
    key = scheduler.submit(tokens, sampling)
    result = Generated()
    while scheduler.busy and not stopped():
        for event in scheduler.step():
            result.add(event)
            print(event.text, end="", flush=True)
    if scheduler.busy:
        scheduler.cancel(key)
    print(flush=True)
    return result


def tell_what_lacks(result: Generated, opening: Opening | None) -> None:
    """Say on stderr that an answer is empty or was cut off: neither can be seen in the text.

    `opening`: how the answer began; None outside a chat.
    """
    content = result.text if opening is None else parse_completion(result.text, opening).content
    if not content.strip():
        say("(an empty answer)" if not result.text.strip() else "(no answer behind the reasoning)")
    if result.finish == "length":
        say(f"(cut off after {result.generated} tokens: --max-tokens or --context allows no more)")


@contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether Ctrl-C came. A second one, while a step still runs, ends the program."""
    heard = False

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if heard:
            raise KeyboardInterrupt
        heard = True

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield lambda: heard
    finally:
        signal.signal(signal.SIGINT, before)
