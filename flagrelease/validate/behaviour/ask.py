"""Asking the bundled engine, many prompts at once on one scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flagrelease.engine.batch.scheduler import Scheduler, generate_each
from flagrelease.engine.batch.sequence import Generated
from flagrelease.engine.sampling import Sampling
from flagrelease.model.v4.efforts import Effort
from flagrelease.records.rules import BehaviourRules
from flagrelease.validate.behaviour.answers import Reply, digest_of
from flagrelease.validate.behaviour.journal import PromptAsk
from flagrelease.validate.behaviour.signs import grants, loops, read_completion


@dataclass(frozen=True, slots=True)
class EngineAsker:
    """A model on a scheduler, whose context must hold a prompt and `rules.max_tokens`.

    `effort` is what the model makes of the rules' mode.
    """

    scheduler: Scheduler
    effort: Effort
    rules: BehaviourRules

    def __call__(self, asks: Sequence[PromptAsk]) -> Iterator[Reply]:
        """Each as soon as it is there.

        Raises:
            UsageError: a prompt and its answer do not fit the context.
        """
        prompts = [tuple(self.scheduler.tokenizer.encode(ask.prompt.encode(self.effort))) for ask in asks]
        samplings = [self._sampling(ask) for ask in asks]
        for place, generated in generate_each(self.scheduler, list(zip(prompts, samplings, strict=True))):
            yield self._judged(asks[place], prompts[place], generated)

    def _sampling(self, ask: PromptAsk) -> Sampling:
        return Sampling(self.rules.temperature, self.rules.top_p, ask.seed, self.rules.max_tokens)

    def _judged(self, ask: PromptAsk, tokens: tuple[int, ...], generated: Generated) -> Reply:
        whole = generated.finish == "stop"  # half a call is cut off, not broken
        completion = read_completion(generated.text, ask.prompt.encode(self.effort).opening) if whole else None
        return Reply(
            prompt=ask.prompt.id,
            repeat=ask.repeat,
            wish=ask.prompt.wish,
            prompt_sha256=digest_of(tokens),
            prompt_tokens=len(tokens),
            tokens=generated.generated,
            finish=generated.finish,
            loops=loops(generated.text),
            broken=whole and completion is None,
            granted=completion is not None and grants(completion.content, completion.tool_calls, ask.prompt),
        )
