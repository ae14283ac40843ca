"""`write_continuations`: the native side of the gate."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

from flagrelease.durable.log import AppendLog
from flagrelease.errors import CheckpointError
from flagrelease.records.rules import WritingRules
from flagrelease.validate.logits.continuations.stored import Continuation, Continuations, ContinuationsHead
from flagrelease.validate.logits.continuations.texts import TextModel
from flagrelease.validate.logits.documents import Document
from flagrelease.validate.seeds import seed_of

Watch = Callable[[int, int], None]  # steps so far, of how many
Prompts = Mapping[str, tuple[int, ...]]


class _Step(BaseModel):
    """A text that is written (`logp` empty), or written and scored."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    answer: tuple[int, ...]
    logp: tuple[float, ...] = ()


def beginnings(documents: Sequence[Document], rules: WritingRules) -> Prompts:
    """What is continued, by the names of the documents. Of a short one the end is left to write, half of it at most."""

    def begun(tokens: tuple[int, ...]) -> tuple[int, ...]:
        return tokens[: min(rules.prompt_tokens, max(len(tokens) // 2, len(tokens) - rules.tokens))]

    return {each.name: begun(each.tokens) for each in documents[: rules.documents]}


def prompts_sha256(prompts: Prompts) -> str:
    """SHA-256 over names and token ids."""
    return hashlib.sha256(json.dumps(list(prompts.items()), separators=(",", ":")).encode()).hexdigest()


def write_continuations(
    model: TextModel, prompts: Prompts, head: ContinuationsHead, journal: Path, watch: Watch
) -> Continuations:
    """Have each prompt continued, then score what was written; what the journal holds is not asked for again.

    Args:
        model: the native one.
        prompts: from `beginnings`.
        head: whose texts they are, and under which rules.
        journal: the log of what is done.
        watch: is told after every text, once when it is written and once when it is scored.

    Raises:
        CheckpointError: the model gives no numbers, or writes nothing.
        ResourceError: the journal was begun for another model, stack, documents or rules, or is in use.
    """
    with AppendLog(journal, "continuations", 1, TypeAdapter(_Step), _binding(head)) as log:
        done = {step.name: step for step in log.records}

        def keep(step: _Step) -> None:
            log.append(step, sync=True)
            done[step.name] = step
            watch(len(done) + sum(bool(each.logp) for each in done.values()), 2 * len(prompts))

        missing = {name: prompt for name, prompt in prompts.items() if name not in done}
        seeds = {name: seed_of(head.rules.seed, name) for name in missing}
        for name, answer in model.write(missing, seeds, head.rules.tokens):
            keep(_Step(name=name, answer=answer))
        unscored = {
            name: (*prompts[name], *step.answer) for name, step in done.items() if step.answer and not step.logp
        }
        for rated in model.rate(unscored):
            answer = done[rated.name].answer
            logp = rated.of_last(len(answer))
            if isinstance(logp, str) or not all(map(math.isfinite, logp)):
                reason = logp if isinstance(logp, str) else "log-probabilities are NaN or infinite"
                raise CheckpointError(f"document {rated.name!r}: its continuation cannot be scored: {reason}")
            keep(_Step(name=rated.name, answer=answer, logp=logp))
    texts = tuple(
        Continuation(name=name, prompt=prompt, answer=done[name].answer, logp=done[name].logp)
        for name, prompt in prompts.items()
        if done[name].answer
    )
    if not texts:
        raise CheckpointError("the model ends every text at once: there is nothing to score")
    return Continuations(**head.model_dump(), texts=texts)


def _binding(head: ContinuationsHead) -> dict[str, str]:
    fields = head.model_dump(mode="json", exclude={"schema_version"})
    return {name.replace("_", " "): json.dumps(value, sort_keys=True) for name, value in fields.items()}
