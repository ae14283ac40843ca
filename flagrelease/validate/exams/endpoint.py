"""A server with OpenAI's chat completions as an answerer: vLLM or SGLang on the chip, DeepSeek's, `flagrelease serve`.

`retry.Patience` says how what passes by itself (429, 5xx, a cut connection, a timeout) is waited out; the client's own
retries are off. Anything else ends the run, and the journal keeps the answers that are there. Messages name the status,
never the body: a server's complaint may quote the question.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from flagrelease.concurrently import end_tasks
from flagrelease.errors import NetworkError, ResourceError
from flagrelease.extras import remedy
from flagrelease.model.v4.chat import END_THINK
from flagrelease.model.v4.efforts import Effort, Efforts
from flagrelease.redaction import redact
from flagrelease.retry import TRANSIENT_STATUS, Obstacle, Patience, seconds_asked
from flagrelease.validate.exams.answerer import Ask, AskRules, Finish, Reply
from flagrelease.validate.exams.extraction import final_text

if TYPE_CHECKING:
    import openai

Dialect = Literal["deepseek", "template"]
_FINISHES = ("stop", "length")


@dataclass(frozen=True, slots=True)
class EndpointAnswerer:
    """A model behind an address.

    Attributes:
        url: with the version, for example "http://localhost:8000/v1".
        efforts: those of the model that is meant to be there; a request names one of them.
        dialect: how the effort is asked for. `deepseek`: the fields `thinking` and `reasoning_effort`, as DeepSeek's
            API and `flagrelease serve`; `template`: `chat_template_kwargs`, as vLLM and SGLang.
        key_variable: the environment variable with the key. A server on one's own machine needs none.
        concurrency: requests at once.
        timeout: seconds without a whole answer after which the connection is given up; answers are not streamed.
        silence: seconds without any answer after which a line on stderr says what is waited for; and so on.
        patience: how often one answer is asked for, and how long is waited in between.
    """

    url: str
    model: str
    stack: str
    efforts: Efforts
    dialect: Dialect = "deepseek"
    concurrency: int = 32
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 3600.0
    silence: float = 60.0
    patience: Patience = field(default_factory=Patience)

    def answer(self, asks: Sequence[Ask], rules: AskRules) -> Iterator[tuple[Ask, Reply]]:
        """As `Answerer` says. After an error, or when the caller stops listening, open requests are given up."""
        client = self._client()
        loop = asyncio.new_event_loop()
        waiting = iter(asks)
        running: dict[asyncio.Task[Reply], _Open] = {}
        try:
            while True:
                for ask in itertools.islice(waiting, self.concurrency - len(running)):
                    opened = _Open(ask)
                    running[loop.create_task(self._ask(client, opened, rules))] = opened
                if not running:
                    return
                first = asyncio.wait(running, timeout=self.silence, return_when=asyncio.FIRST_COMPLETED)
                done, _ = loop.run_until_complete(first)
                if not done:
                    self._say_waiting(list(running.values()))
                for task in sorted(done, key=lambda task: task.exception() is not None):  # answers before an error
                    yield running.pop(task).ask, task.result()
        finally:
            loop.run_until_complete(_give_up(running, client))
            loop.close()

    def _say_waiting(self, opened: Sequence[_Open]) -> None:
        oldest = min(opened, key=lambda each: each.since)
        troubles = sorted({each.trouble for each in opened if each.trouble})
        said = f"{len(opened)} answers are waited for, the oldest for {time.monotonic() - oldest.since:.0f} s"
        print(f"{redact(self.url)}: {'; '.join([said, *troubles])}", file=sys.stderr, flush=True)

    def _client(self) -> openai.AsyncOpenAI:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise ResourceError(f"an endpoint needs {error.name}: {remedy('eval')}") from error
        key = os.environ.get(self.key_variable) or "none"
        return openai.AsyncOpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=self.timeout)

    async def _ask(self, client: openai.AsyncOpenAI, opened: _Open, rules: AskRules) -> Reply:
        for attempt in range(1, self.patience.attempts + 1):
            try:
                return self._read(await self._post(client, opened.ask, rules), rules)
            except _PassingError as passing:
                opened.trouble = passing.met.reason
                seconds = self.patience.seconds_after(redact(self.url), attempt, passing.met)
            await asyncio.sleep(seconds)
        raise AssertionError

    async def _post(self, client: openai.AsyncOpenAI, ask: Ask, rules: AskRules) -> Any:
        import openai

        try:
            return await client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": ask.prompt}],
                temperature=rules.temperature,
                top_p=rules.top_p,
                seed=ask.seed,
                max_tokens=rules.max_tokens,
                extra_body=switch(self.efforts.of(rules.mode), self.dialect),
            )
        except openai.APIStatusError as error:
            if error.status_code in TRANSIENT_STATUS | {409}:  # OpenAI's 409: another request holds a lock
                raise _PassingError(f"HTTP {error.status_code}", seconds_asked(error.response.headers)) from None
            raise NetworkError(f"{redact(self.url)}: HTTP {error.status_code} for model {self.model!r}") from None
        except openai.APITimeoutError:
            raise _PassingError(f"no answer within {self.timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise _PassingError(f"no connection ({type(error.__cause__).__name__})") from None
        except (openai.OpenAIError, ValueError) as error:
            raise NetworkError(f"{redact(self.url)}: the reply is not JSON ({type(error).__name__})") from None

    def _read(self, reply: Any, rules: AskRules) -> Reply:
        """The client does not check what it parsed; this does."""
        try:
            (choice,) = reply.choices
            message, finish = choice.message, choice.finish_reason
            content = message.content or ""
            reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None) or ""
            prompt_tokens, tokens = int(reply.usage.prompt_tokens), int(reply.usage.completion_tokens)
            if prompt_tokens < 1 or tokens < 0:
                raise ValueError
            whole: str = reasoning + END_THINK + content if reasoning else "" + content
        except (AttributeError, TypeError, ValueError):
            raise NetworkError(
                f"{redact(self.url)}: the reply is not a chat completion with one choice and its usage"
            ) from None
        if finish not in _FINISHES:
            raise NetworkError(f"{redact(self.url)}: an answer ended with finish_reason {finish!r}")
        cut_off = self.efforts.of(rules.mode).thinks and finish == "length" and END_THINK not in whole
        return Reply(
            text="" if cut_off else final_text(whole, reasons=False),
            reasoned=bool(reasoning) or END_THINK in content or cut_off,
            prompt_tokens=prompt_tokens,
            tokens=tokens,
            finish=cast(Finish, finish),
            whole_sha256=hashlib.sha256(whole.encode()).hexdigest(),
        )


def switch(effort: Effort, dialect: Dialect) -> dict[str, Any]:
    """What a request says beyond OpenAI's fields, so that the model thinks as `effort` says.

    The effort is named even where it is the model's default: servers have defaults of their own.
    """
    named = {"reasoning_effort": effort.name} if effort.thinks else {}
    if dialect == "template":
        return {"chat_template_kwargs": {"thinking": effort.thinks, **named}}
    return {"thinking": {"type": "enabled" if effort.thinks else "disabled"}, **named}


async def _give_up(running: Iterable[asyncio.Task[Reply]], client: openai.AsyncOpenAI) -> None:
    await end_tasks(running)
    await client.close()


@dataclass(slots=True)
class _Open:
    """A request that is under way: `since` when (monotonic seconds), and what it last met that may pass."""

    ask: Ask
    since: float = field(default_factory=time.monotonic)
    trouble: str = ""


class _PassingError(Exception):
    """What an attempt met may be gone at the next one."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.met = Obstacle(reason, seconds)
