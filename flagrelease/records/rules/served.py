"""Rules of logits that a server tells."""

from __future__ import annotations

from pydantic import Field

from flagrelease.records.rules.strict import Strict


class ServedRules(Strict):
    """How a server is asked for the log-probabilities of prompts, and when its short lists can be enough for a pass.

    Attributes:
        alternatives: most likely tokens that are asked for at each place; a server that gives fewer is asked for the
            most of 20, 5 and 1 that it gives.
        least_share: of the KL between the native run and the oracle, the part that lists of that length show; with less
            the whole cannot be inferred from the part.
    """

    alternatives: int = Field(100, ge=1)
    least_share: float = Field(0.5, gt=0, le=1)
