"""Generation at the terminal: one prompt, a file of prompts, a chat. Text goes to stdout, talk to stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagrelease.console import Display, say
from flagrelease.engine.batch.scheduler import Scheduler, generate_each
from flagrelease.engine.generate.answer_file import AnswerFile, answer_document, complete, resuming
from flagrelease.engine.generate.chat import Chat, listening, stream, tell_what_lacks
from flagrelease.engine.generate.pace import Pace
from flagrelease.engine.generate.prompts import Request
from flagrelease.engine.generate.turns import Turns
from flagrelease.engine.json_line import json_line
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.session import Session
from flagrelease.model.v4.chat import Message
from flagrelease.model.v4.efforts import Effort
from flagrelease.model.v4.encoded import Opening

Write = Callable[[int, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Terminal:
    """`effort`: how much the model thinks in its chats; None: there are no chats, text is continued as it is.

    `opening`: how the answer to a single prompt begins, if that is a chat.
    """

    session: Session
    effort: Effort | None
    sampling: Sampling
    opening: Opening | None = None

    def answer(self, tokens: Sequence[int], context: int, *, as_json: bool) -> None:
        """Print the continuation of one prompt while it is being written, or one JSON document at its end.

        Args:
            tokens: the prompt. Only the leader needs it.
            context: tokens that the prompt and its answer may have together.
            as_json: print a document.
        """
        scheduler = self._scheduler(1, context)
        if scheduler is None:
            return
        with _stopping(scheduler):
            pace = Pace(1, scheduler.totals, Display())  # not entered: a bar would get between the words of the answer
            if as_json:
                ((_, result),) = generate_each(scheduler, [(tokens, self.sampling)])
                print(json.dumps(answer_document(tokens, result), indent=2, ensure_ascii=False))
            else:
                with listening() as stopped:
                    result = stream(scheduler, tokens, self.sampling, stopped)
                if stopped():
                    raise KeyboardInterrupt
                tell_what_lacks(result, self.opening)
            pace.answered()

    def answer_file(
        self, requests: Sequence[Request], digests: Sequence[str], out: Path | None, context: int, rows: int
    ) -> None:
        """Write a line for each request as it is answered: to `out`, which may hold some already, or stdout.

        Args:
            requests: what is asked. Only the leader needs them.
            digests: of the requests, in their order (`request_digest`); not needed without `out`.
            out: the file of answers, or None for stdout.
            context: tokens that a prompt and its answer may have together.
            rows: answers at once.
        """
        scheduler = self._scheduler(rows, context)
        if scheduler is None:
            return
        with _stopping(scheduler):
            if out is None:
                self._answer_each(scheduler, requests, range(len(requests)), _print_line)
                return
            with AnswerFile(out, digests) as file:
                missing = [place for place in range(len(requests)) if place not in file.finished]
                if not missing:
                    say(complete(out, len(requests)))
                    return
                if file.finished:
                    say(resuming(out, len(file.finished), len(missing)))
                self._answer_each(scheduler, requests, missing, file.add)

    def _answer_each(
        self, scheduler: Scheduler, requests: Sequence[Request], wanted: Sequence[int], write: Write
    ) -> None:
        with Display() as display:
            pace = Pace(len(wanted), scheduler.totals, display)
            for n, result in generate_each(scheduler, [requests[place] for place in wanted]):
                write(wanted[n], answer_document(requests[wanted[n]][0], result))
                pace.answered()

    def chat(self, context: int, system: str | None) -> None:
        """Answer what is said on standard input, turn by turn; `system` is told to the model before."""
        scheduler = self._scheduler(1, context)
        if scheduler is None:
            return
        assert self.effort is not None
        begun: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        with _stopping(scheduler):
            Chat(scheduler, self.effort, self.sampling, begun).run(Turns())

    def _scheduler(self, rows: int, context: int) -> Scheduler | None:
        """On the leader; the other ranks work here until it is done, and get None."""
        runner = self.session.runner(rows, context)
        if self.session.model.groups.is_leader:
            return self.session.scheduler(runner, self.session.tokenizer())
        runner.follow()
        return None


def _print_line(place: int, document: dict[str, Any]) -> None:
    print(json_line({"index": place, **document}), flush=True)


@contextmanager
def _stopping(scheduler: Scheduler) -> Iterator[None]:
    """At the end, however it comes, the other ranks are let go."""
    try:
        yield
    finally:
        scheduler.runner.stop()
