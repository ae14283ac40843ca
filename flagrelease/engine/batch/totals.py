"""`Totals`: what a scheduler has done since it was made."""

from __future__ import annotations

from dataclasses import dataclass

from flagrelease.engine.batch.acceptance import NO_DRAFTS, Acceptance


@dataclass(slots=True)
class Totals:
    """Counts of tokens.

    Attributes:
        prompt: of prompts, read.
        cached: of prompts, not read: what a row remembers of them was kept.
        generated: of answers.
        acceptance: what became of drafts.
    """

    prompt: int = 0
    cached: int = 0
    generated: int = 0
    acceptance: Acceptance = NO_DRAFTS

    @property
    def drafted(self) -> int:
        """Drafts that were verified."""
        return self.acceptance.drafts

    @property
    def accepted(self) -> int:
        """Those that were right."""
        return self.acceptance.right
