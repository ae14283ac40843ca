"""What the pipeline knows of a stage: whether it can be run, what its verdict depends on, and its outcome."""

from __future__ import annotations

from typing import Protocol

from pydantic import BaseModel, ConfigDict

from flagrelease.records.computed_on import ComputedOn
from flagrelease.records.report import Benchmark, Stage
from flagrelease.records.rules import StageName


class Watch(Protocol):
    """Is told how far work is."""

    def __call__(self, what: str, done: int, total: int, unit: str) -> None:
        """`done` of `total` units are done; the unit `B` is bytes."""
        ...


FILE_STAGES: tuple[StageName, ...] = ("integrity", "weights")  # need nothing but files
NO_ENDPOINT = "needs --endpoint: a server that serves this release"
ABSENT = "none"  # an input that was not given


class Outcome(BaseModel):
    """What is kept of a finished stage.

    Attributes:
        inputs: what the verdict depends on besides manifest, chip and rules: name -> digest or address.
        seeds: the seeds that the stage used, by what they were for.
        computed_on: what computed the figures; null for a stage that reads files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Stage
    inputs: dict[str, str]
    benchmarks: tuple[Benchmark, ...] = ()
    seeds: dict[str, int] = {}
    computed_on: ComputedOn | None = None

    def differences(self, inputs: dict[str, str]) -> list[str]:
        """Names of inputs that are not those of this outcome. One that is missing on a side does not count."""
        both = self.inputs | inputs
        return sorted(
            name
            for name in both
            if ABSENT not in (mine := self.inputs.get(name), theirs := inputs.get(name)) and mine != theirs
        )

    def rests_on_less(self, inputs: dict[str, str]) -> bool:
        """Whether an input is given now that was missing then, such as the source: another run can show more.

        A stage that failed is not run again: its verdict stays."""
        gained = any(value == ABSENT != inputs.get(name, ABSENT) for name, value in self.inputs.items())
        return gained and self.stage.verdict != "fail"


class StageRunner(Protocol):
    """One of the stages."""

    @property
    def name(self) -> StageName:
        """Its name."""
        ...

    def missing(self) -> str | None:
        """Why it cannot be run, for the reader of the report; None if it can."""
        ...

    def inputs(self) -> dict[str, str]:
        """What its verdict will depend on, as in `Outcome`."""
        ...

    def run(self, watch: Watch) -> Outcome:
        """Run it, or resume it."""
        ...
