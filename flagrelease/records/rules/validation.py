"""All rules of a validation, and the names of its stages."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from flagrelease.records.rules.behaviour import BehaviourRules
from flagrelease.records.rules.benchmarks import BenchmarkRules
from flagrelease.records.rules.invariance import InvarianceRules
from flagrelease.records.rules.logits import LogitsRules
from flagrelease.records.rules.long_context import LongContextRules
from flagrelease.records.rules.preflight import PreflightRules
from flagrelease.records.rules.strict import Strict

StageName = Literal[
    "integrity", "weights", "preflight", "logits", "invariance", "long-context", "benchmarks", "behaviour"
]
STAGES: tuple[StageName, ...] = get_args(StageName)  # in the order they run: cheapest first
_NEEDED: tuple[StageName, ...] = ("integrity", "weights", "logits", "benchmarks", "behaviour")


class ValidationRules(Strict):
    """All of them.

    Attributes:
        stages: a pass needs these. Those that only an endpoint can answer are needed where a recipe says so.
        device: `chip`: logits, answers and behaviour count on the chip's own kind of device only; `any`: wherever they
            were computed, for a model that shows the tool and proves nothing of a chip.
        preflight: what a server must do before it is asked for hours; None where it is not looked at.
        logits: of the stage logits.
        invariance: how a server's answers may differ from each other; None where they are not compared.
        long_context: None where nothing is retrieved from long contexts.
        benchmarks: by name.
        behaviour: of the stage behaviour.
    """

    stages: tuple[StageName, ...] = Field(default=_NEEDED, min_length=1)
    device: Literal["chip", "any"] = "chip"
    preflight: PreflightRules | None = PreflightRules()
    logits: LogitsRules = LogitsRules()
    invariance: InvarianceRules | None = InvarianceRules()
    long_context: LongContextRules | None = None
    benchmarks: dict[str, BenchmarkRules] = Field(default={})
    behaviour: BehaviourRules = BehaviourRules()
