"""A model is asked all behaviour prompts: answers come from the journal, or from who answers and into the journal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from flagrelease.durable.log import AppendLog
from flagrelease.records.rules import BehaviourRules
from flagrelease.validate.behaviour.answers import Behaviour, BehaviourHead, Reply
from flagrelease.validate.behaviour.prompts import Prompt, prompts_of, prompts_sha256
from flagrelease.validate.seeds import seed_of

Watch = Callable[[int, int], None]  # answers so far, of how many


@dataclass(frozen=True, slots=True)
class PromptAsk:
    """One answer that is wanted, with a seed of its own."""

    prompt: Prompt
    repeat: int
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        """By which the journal knows its answer."""
        return self.prompt.id, self.repeat


Answering = Callable[[Sequence[PromptAsk]], Iterator[Reply]]  # each as soon as it is there, in any order


def collect(
    answering: Answering, subject: str, stack: str, rules: BehaviourRules, journal: Path, watch: Watch
) -> Behaviour:
    """Ask what the journal does not hold yet, and return everything.

    Args:
        subject: what answers; `stack` is its machine and software.
        rules: how it is asked.
        journal: the log of answers, which survives a kill; its first line says whose they are.
        watch: is told after every answer.

    Raises:
        ResourceError: the journal was begun for another subject, stack or rules, or is in use.
        FlagReleaseError: as `answering`; the answers that were there before it are kept.
    """
    head = BehaviourHead(subject=subject, stack=stack, prompts_sha256=prompts_sha256(), rules=rules)
    asks = [
        PromptAsk(prompt, repeat, seed_of(rules.seed, prompt.id, repeat))
        for prompt in prompts_of(rules)
        for repeat in range(rules.repeats)
    ]
    with AppendLog(journal, "answers to behaviour prompts", 2, TypeAdapter(Reply), _binding(head)) as log:
        done = {(answer.prompt, answer.repeat): answer for answer in log.records}
        watch(len(done), len(asks))
        for answer in answering([ask for ask in asks if ask.key not in done]):
            log.append(answer, sync=True)
            done[answer.prompt, answer.repeat] = answer
            watch(len(done), len(asks))
    ordered = tuple(done[ask.key] for ask in asks)
    return Behaviour(subject=subject, stack=stack, prompts_sha256=head.prompts_sha256, rules=rules, answers=ordered)


def _binding(head: BehaviourHead) -> dict[str, str]:
    """What the answers depend on, by names for the user."""
    fields = head.model_dump(mode="json", exclude={"schema_version"})
    return {name.replace("_", " "): json.dumps(value, sort_keys=True) for name, value in fields.items()}
