"""Asking: every prompt as often as the rules say, on the bundled engine, into a journal that survives a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from flagrelease.durable.log import AppendLog
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.batch.sequence import Generated
from flagrelease.engine.sampling import Sampling
from flagrelease.model.v4.efforts import Effort
from flagrelease.model.v4.encoded import Opening
from flagrelease.records.rules import BehaviourRules
from flagrelease.validate.behaviour.answers import Behaviour, BehaviourHead, Reply
from flagrelease.validate.behaviour.prompts import Prompt, prompts_of, prompts_sha256
from flagrelease.validate.behaviour.signs import calls_tool, is_json_object, loops, read_completion
from flagrelease.validate.seeds import seed_of

Watch = Callable[[int, int], None]  # answers so far, of how many


@dataclass(frozen=True, slots=True)
class _Ask:
    prompt: Prompt
    repeat: int
    tokens: tuple[int, ...]
    opening: Opening

    @property
    def key(self) -> tuple[str, int]:
        return self.prompt.id, self.repeat


def answer_prompts(
    scheduler: Scheduler,
    effort: Effort,
    subject: str,
    stack: str,
    rules: BehaviourRules,
    journal: Path,
    watch: Watch,
) -> Behaviour:
    """Ask what the journal does not hold yet, and return everything.

    Args:
        scheduler: of the model; its context must hold a prompt and `rules.max_tokens`.
        effort: what the model makes of the rules' mode.
        subject: what answers; `stack` is its machine and software.
        rules: how it is asked.
        journal: the log of answers; its first line says whose they are.
        watch: is told after every answer.

    Raises:
        UsageError: a prompt and its answer do not fit the context.
        ResourceError: the journal was begun for another subject, stack or rules, or is in use.
    """
    head = BehaviourHead(subject=subject, stack=stack, prompts_sha256=prompts_sha256(), rules=rules)
    asks = list(_asks(scheduler, effort, rules))
    with AppendLog(journal, "answers to behaviour prompts", 2, TypeAdapter(Reply), _binding(head)) as log:
        done = {(answer.prompt, answer.repeat): answer for answer in log.records}
        watch(len(done), len(asks))
        for answer in _ask([ask for ask in asks if ask.key not in done], scheduler, rules):
            log.append(answer, sync=True)
            done[answer.prompt, answer.repeat] = answer
            watch(len(done), len(asks))
    ordered = tuple(done[ask.key] for ask in asks)
    return Behaviour(subject=subject, stack=stack, prompts_sha256=head.prompts_sha256, rules=rules, answers=ordered)


def _binding(head: BehaviourHead) -> dict[str, str]:
    """What the answers depend on, by names for the user."""
    fields = head.model_dump(mode="json", exclude={"schema_version"})
    return {name.replace("_", " "): json.dumps(value, sort_keys=True) for name, value in fields.items()}


def _asks(scheduler: Scheduler, effort: Effort, rules: BehaviourRules) -> Iterator[_Ask]:
    for prompt in prompts_of(rules):
        chat = prompt.encode(effort)
        tokens = tuple(scheduler.tokenizer.encode(chat))
        yield from (_Ask(prompt, repeat, tokens, chat.opening) for repeat in range(rules.repeats))


def _ask(asks: list[_Ask], scheduler: Scheduler, rules: BehaviourRules) -> Iterator[Reply]:
    """Each as soon as it is there."""
    waiting: dict[int, tuple[_Ask, Generated]] = {}
    for ask in asks:
        key = scheduler.submit(ask.tokens, _sampling(rules, ask))
        waiting[key] = ask, Generated()
    while scheduler.busy:
        for event in scheduler.step():
            ask, generated = waiting[event.key]
            generated.add(event)
            if event.finish:
                yield _judged(ask, generated)


def _sampling(rules: BehaviourRules, ask: _Ask) -> Sampling:
    """With a seed of its own."""
    seed = seed_of(rules.seed, ask.prompt.id, ask.repeat)
    return Sampling(rules.temperature, rules.top_p, seed, rules.max_tokens)


def _judged(ask: _Ask, generated: Generated) -> Reply:
    whole = generated.finish == "stop"
    completion = read_completion(generated.text, ask.opening) if whole else None  # half a call is cut off, not broken
    granted = {
        "text": lambda: completion is not None and bool(completion.content.strip()),
        "tool": lambda: completion is not None and calls_tool(completion.tool_calls, ask.prompt.tools),
        "json": lambda: completion is not None and is_json_object(completion.content),
    }
    return Reply(
        prompt=ask.prompt.id,
        repeat=ask.repeat,
        wish=ask.prompt.wish,
        prompt_sha256=hashlib.sha256(" ".join(map(str, ask.tokens)).encode()).hexdigest(),
        prompt_tokens=len(ask.tokens),
        tokens=generated.generated,
        finish=generated.finish,
        loops=loops(generated.text),
        broken=whole and completion is None,
        granted=granted[ask.prompt.wish](),
    )
