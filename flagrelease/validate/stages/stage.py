"""What a stage is to the pipeline: whether it can be run, what it rests on, and what comes out."""

from __future__ import annotations

from typing import Protocol

from pydantic import BaseModel, ConfigDict

from flagrelease.records.report import Benchmark, Stage
from flagrelease.records.rules import StageName


class Watch(Protocol):
    """Where work says how far it is."""

    def __call__(self, what: str, done: int, total: int, unit: str) -> None:
        """`done` of `total` units are done; the unit `B` is bytes."""
        ...


FILE_STAGES: tuple[StageName, ...] = ("integrity", "weights")  # need nothing but files
ABSENT = "none"  # an input that was not given


class Outcome(BaseModel):
    """What is kept of a finished stage.

    Attributes:
        inputs: what the verdict rests on beside manifest, chip and rules: name to digest or address.
        seeds: that it used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Stage
    inputs: dict[str, str]
    benchmarks: tuple[Benchmark, ...] = ()
    seeds: dict[str, int] = {}

    def differences(self, inputs: dict[str, str]) -> list[str]:
        """Inputs that are others than those this rests on. What was not given on one of the sides is no difference."""
        both = self.inputs | inputs
        return sorted(
            name
            for name in both
            if ABSENT not in (mine := self.inputs.get(name), theirs := inputs.get(name)) and mine != theirs
        )

    def rests_on_less(self, inputs: dict[str, str]) -> bool:
        """Whether something is given now that was not given then, as the source may be: the stage is worth running
        again. A stage that failed has nothing to gain: its verdict stays."""
        gained = any(value == ABSENT != inputs.get(name, ABSENT) for name, value in self.inputs.items())
        return gained and self.stage.verdict != "fail"


class StageRunner(Protocol):
    """One of the five."""

    @property
    def name(self) -> StageName:
        """Which one."""
        ...

    def missing(self) -> str | None:
        """Why it cannot be run, for the reader of the report; None if it can."""
        ...

    def inputs(self) -> dict[str, str]:
        """As in `Outcome`."""
        ...

    def run(self, watch: Watch) -> Outcome:
        """Run it, or go on with it."""
        ...
