"""From samples to the numbers of a row: percentiles of latencies, throughput, failures by kind."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flagrelease.bench.serve.drafts import DATA
from flagrelease.bench.serve.sample import RequestSample
from flagrelease.bench.serve.scenario import ScenarioRow
from flagrelease.engine.batch.acceptance import Acceptance


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles | None:
        """None of nothing."""
        ordered = sorted(values)
        return cls(*(_percentile(ordered, q) for q in (0.5, 0.9, 0.99))) if ordered else None


def _percentile(ordered: Sequence[float], q: float) -> float:
    """Linear between the two nearest ranks, as numpy's default."""
    place = q * (len(ordered) - 1)
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True, slots=True)
class ServeFigures:
    """A measured row. Latencies and tokens are those of answers that came whole.

    Attributes:
        row: what was asked.
        seconds: from the first request sent to the last answer, warm-up not counted.
        answered: whole answers.
        failures: how many requests failed, by kind.
        example: one failure in full.
        prompt_tokens: mean, as the server counted; None if it does not.
        tokens: of all answers.
        counted: whether the server counted the answers' tokens; if not, pieces of text stand for them.
        first: time to the first text.
        per_token: mean time of an answer's later tokens.
        gap: an answer's longest time without new text.
        whole: time to the end of an answer.
        drafts: what became of the server's drafts meanwhile; None if it does not tell, or made none.
    """

    row: ScenarioRow
    seconds: float
    answered: int
    failures: dict[str, int]
    example: str
    prompt_tokens: float | None
    tokens: int
    counted: bool
    first: Percentiles | None
    per_token: Percentiles | None
    gap: Percentiles | None
    whole: Percentiles | None
    drafts: Acceptance | None = None

    @property
    def throughput(self) -> float:
        """Answer tokens a second, over all requests at once. The end, where fewer run, is in it: ask enough rounds."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @classmethod
    def of(
        cls, row: ScenarioRow, samples: Sequence[RequestSample], seconds: float, drafts: Acceptance | None = None
    ) -> ServeFigures:
        """What `samples`, taken in `seconds`, come to; `drafts`: what the server counted meanwhile."""
        good = [sample for sample in samples if sample.failure is None]
        bad = [sample for sample in samples if sample.failure is not None]
        prompts = [sample.prompt_tokens for sample in good if sample.prompt_tokens is not None]
        return cls(
            row=row,
            seconds=seconds,
            answered=len(good),
            failures=dict(sorted(Counter(str(sample.failure) for sample in bad).items())),
            example=bad[0].detail if bad else "",
            prompt_tokens=sum(prompts) / len(prompts) if prompts else None,
            tokens=sum(sample.tokens for sample in good),
            counted=all(sample.counted for sample in good),
            first=Percentiles.of([s.first for s in good if s.first is not None]),
            per_token=Percentiles.of([s.per_token for s in good if s.per_token is not None]),
            gap=Percentiles.of([s.longest_gap for s in good if s.longest_gap is not None]),
            whole=Percentiles.of([s.ended for s in good]),
            drafts=drafts if drafts is not None and drafts.verifications > 0 else None,
        )

    def document(self) -> dict[str, Any]:
        """For JSON."""
        drafts = None if self.drafts is None else {**self.drafts.document(), "of": DATA}
        return {**asdict(self), "throughput": self.throughput, "drafts": drafts}
