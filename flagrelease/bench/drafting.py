"""What speculation costs: a step that verifies a row's newest token and its drafts, and a draft, beside a plain step.

With random weights no draft means anything, so that nothing is said about how many are right: only how many must be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from flagrelease.bench.roof import seconds
from flagrelease.bench.rooms import caches
from flagrelease.engine.decode.decoder import Decoder
from flagrelease.engine.decode.stepper import open_drafter
from flagrelease.engine.v4.drafting import open_drafting
from flagrelease.engine.v4.model import Model


@dataclass(frozen=True, slots=True)
class DraftRow:
    """One measurement.

    Attributes:
        size: rows.
        context: tokens before those that are decoded.
        drafts: of a row, that are verified at once.
        step: seconds of a step of one token a row.
        verify: seconds of a step of one token and its drafts a row.
        draft: seconds of making them, the likeliest ones.
    """

    size: int
    context: int
    drafts: int
    step: float
    verify: float
    draft: float

    @property
    def ratio(self) -> float:
        """Steps that a draft and its verification take as long as."""
        return (self.verify + self.draft) / self.step

    @property
    def break_even(self) -> float:
        """Drafts of a row that must be right in each verification for speculation to be as fast as steps without it.

        A verification gives these and one token more. Below 0: it pays if none is right; above `drafts`: it cannot.
        """
        return self.ratio - 1


def measure_drafts(model: Model, steps: int, batch: int, context: int, behind: int) -> DraftRow:
    """Time `steps` of each kind of rows that have `context` tokens behind them, in caches of `behind` more.

    Raises:
        UsageError: the model was made without draft stages.
        ResourceError: a rank has no room for the caches.
    """
    drafting = open_drafting(model, batch, context + behind)
    chunk, model.chunk = model.chunk, drafting.most + 1
    try:
        cache = caches(model, batch, context + behind)
    finally:
        model.chunk = chunk
    decoder = Decoder(model, cache, drafting.most + 1)
    drafter = open_drafter(model, drafting, decoder.features)
    # Different ones: equal tokens would go to the same few experts.
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (batch, drafting.most + 1), generator=generator).tolist()

    def timed(work: Callable[[], object]) -> float:
        def again() -> None:
            cache.lengths[:] = drafting.cache.lengths[:] = [context] * batch
            work()

        return seconds(model.device, again, repeats=3, inner=steps)

    step = timed(lambda: decoder.advance([row[:1] for row in tokens]))
    verify = timed(lambda: decoder.advance(tokens))
    draft = timed(lambda: drafter.guess([row[:1] for row in tokens], None))
    decoder.forget()
    drafter.forget()
    return DraftRow(batch, context, drafting.most, step, verify, draft)
