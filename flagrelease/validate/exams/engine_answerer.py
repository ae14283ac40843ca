"""The bundled engine as an answerer: many answers at once on one scheduler."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flagrelease.errors import VerificationError
from flagrelease.model.v4.chat import BOS
from flagrelease.model.v4.efforts import Efforts
from flagrelease.validate.exams.answerer import Ask, AskRules, Reply
from flagrelease.validate.exams.exam import encode_item
from flagrelease.validate.exams.extraction import final_text

if TYPE_CHECKING:
    from flagrelease.engine.batch.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class EngineAnswerer:
    """On the leader of a session; the other ranks follow. `stack` names machine, numerics and operators."""

    scheduler: Scheduler
    stack: str
    efforts: Efforts

    def answer(self, asks: Sequence[Ask], rules: AskRules) -> Iterator[tuple[Ask, Reply]]:
        """As `Answerer` says."""
        from flagrelease.engine.batch.scheduler import generate_each
        from flagrelease.engine.sampling import Sampling

        prompts = [self.encode(ask, rules) for ask in asks]
        samplings = [Sampling(rules.temperature, rules.top_p, ask.seed, rules.max_tokens) for ask in asks]
        reasons = self.efforts.of(rules.mode).thinks
        for place, generated in generate_each(self.scheduler, list(zip(prompts, samplings, strict=True))):
            yield (
                asks[place],
                Reply(
                    text=final_text(generated.text, reasons=reasons),
                    reasoned=reasons,
                    prompt_tokens=len(prompts[place]),
                    tokens=generated.generated,
                    finish=generated.finish,
                    whole_sha256=hashlib.sha256(generated.text.encode()).hexdigest(),
                ),
            )

    def encode(self, ask: Ask, rules: AskRules) -> list[int]:
        """The prompt as the model reads it.

        Raises:
            VerificationError: it does not have exactly one begin-of-sentence token.
        """
        tokenizer = self.scheduler.tokenizer
        tokens = tokenizer.encode(encode_item(ask.prompt, rules, self.efforts))
        if (begins := tokens.count(tokenizer.encode(BOS)[0])) != 1:
            raise VerificationError(f"{ask.item}: the prompt has {begins} begin-of-sentence tokens, not one")
        return tokens
