"""What a validation must show, fixed before it runs: in the recipe, under `validation`, and copied into the report.

The limits start from published practice and measurements; docs/validation.md gives the source of each.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

StageName = Literal["integrity", "weights", "logits", "benchmarks", "behaviour"]
STAGES: tuple[StageName, ...] = get_args(StageName)  # in the order they run: cheapest first


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LogitsRules(_Strict):
    """Limits of the logits stage. KL in nats, shares and relative differences as fractions."""


class BenchmarkRules(_Strict):
    """One benchmark: what is asked, how often, and the test that decides.

    Attributes:
        margin: largest drop that still counts as aligned, in points of 100.
        repeats: answers to each question, at the first look; `extension` times that many at the last.
    """

    margin: float = Field(gt=0, lt=100)
    repeats: int = Field(ge=1)


class BehaviourRules(_Strict):
    """Limits of the behaviour stage."""


class ValidationRules(_Strict):
    """All of them.

    Attributes:
        stages: a pass needs these.
    """

    stages: tuple[StageName, ...] = STAGES
    logits: LogitsRules = LogitsRules()
    benchmarks: dict[str, BenchmarkRules] = {}
    behaviour: BehaviourRules = BehaviourRules()
