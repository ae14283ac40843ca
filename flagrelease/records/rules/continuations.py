"""Rules of the gate before the logits: how likely a port finds texts that the native model wrote."""

from __future__ import annotations

from pydantic import Field

from flagrelease.records.rules.strict import Strict


class WritingRules(Strict):
    """What the native model writes at temperature 1. A baseline holds these, and is refused under others.

    Attributes:
        documents: of the logits' set, so many, the first ones, are continued.
        prompt_tokens: of each that the continuation begins behind, or as many fewer as `tokens` need, but half of it.
        tokens: that the native model writes, at most.
        seed: from which each text's own is derived.
    """

    documents: int = Field(32, ge=2)
    prompt_tokens: int = Field(64, ge=1)
    tokens: int = Field(128, ge=2)
    seed: int = Field(0, ge=0)


class ContinuationRules(Strict):
    """The gate. Over text that the native model sampled, log p - log q estimates KL(native || port), tail and all.

    Attributes:
        writing: what is written and scored.
        most: nats a token that the mean loss in log-probability, and the estimate k3 of KL, may be: twice what a
            BF16 port may be away from the native run, because so few tokens show less than the stage's 46,000.
        min_tokens: with fewer there is no pass.
    """

    writing: WritingRules = WritingRules()
    most: float = Field(0.03, gt=0)
    min_tokens: int = Field(2048, ge=1)
