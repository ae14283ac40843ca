"""`report.json`, the record of a validation: what `validate` writes and `publish` reads, checked strictly by both.

The report is about one manifest on one chip; both are named in it, so a report of another release, or of this one
before it was changed, is not mistaken for a proof. It holds nothing of the time: a validation that was killed and went
on writes the same report. docs/validation.md describes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from flagrelease.errors import VerificationError, first_problem
from flagrelease.records.computed_on import ComputedOn, say_computed_on
from flagrelease.records.manifest import ToolRecord
from flagrelease.records.rules import STAGES, StageName, ValidationRules

Verdict = Literal["pass", "fail", "cannot-tell"]
PartVerdict = Literal[Verdict, "not-informative"]  # of a part: a benchmark, a rate, a limit
StageVerdict = Literal[PartVerdict, "not-run"]
_PROVING: tuple[StageName, StageVerdict] = ("weights", "pass")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Stage(_Strict):
    """One stage of the validation.

    Attributes:
        verdict: `not-run` where an earlier stage failed, or what the stage needs was not given; `not-informative` where
            the stage could not have failed a port that is broken, as where both sides fail everything or a margin is
            too wide for so few answers. It is no pass. `detail` says why in both cases.
        detail: one sentence.
        proves, leaves_open: sentences for the reader: what this stage showed, and what it did not.
        figures: the stage's own numbers, as the page draws them.
    """

    name: StageName
    verdict: StageVerdict
    detail: str = Field(min_length=1)
    proves: tuple[str, ...] = ()
    leaves_open: tuple[str, ...] = ()
    figures: dict[str, JsonValue] = {}


def proves_weights(stage: Stage) -> bool:
    """Whether it is the weights stage, which passed, and its check `source` too.

    A report can pass without: tensors then have the digests of a manifest, which a converter's fault is in as well.
    """
    found = stage.figures.get("checks") if (stage.name, stage.verdict) == _PROVING else None
    checks = [check for check in found if isinstance(check, dict)] if isinstance(found, list) else []
    return any((check.get("name"), check.get("status")) == ("source", "pass") for check in checks)


class Score(_Strict):
    """A score with its interval, all three in the unit of the metric. `confidence` is the interval's, such as 0.95."""

    value: float = Field(allow_inf_nan=False)
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    confidence: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _inside(self) -> Score:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value} is not inside its interval {self.low} .. {self.high}")
        return self


class Benchmark(_Strict):
    """One benchmark on this chip, and of the native model where it was run with the same questions.

    Attributes:
        task: what is asked, for example "GPQA Diamond"; `dataset` is its repository, `revision` the commit of it.
        metric, unit: as hubs name it, for example `accuracy`, and what the numbers are in, for example "%".
        n: questions; each was answered `repeats` times.
        mode: how the model was asked, for example "thinking, temperature 0.6, at most 32768 tokens".
        native_stack: machine and software of the native score. Null, like `native`, when it was not run.
        rule: what the verdict follows, in words.
        figures: the test that was run, per-item table, lengths: what the page draws.
    """

    task: str = Field(min_length=1)
    dataset: str = Field(min_length=1)
    revision: str = Field(min_length=1)
    metric: str = Field(pattern="^[a-z][a-z0-9_]*$")
    unit: str = Field(min_length=1)
    n: int = Field(gt=0)
    repeats: int = Field(gt=0)
    mode: str = Field(min_length=1)
    chip: Score
    native: Score | None
    native_stack: str | None
    rule: str = Field(min_length=1)
    verdict: PartVerdict
    figures: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _native_has_a_stack(self) -> Benchmark:
        if (self.native is None) != (self.native_stack is None):
            raise ValueError("native and native_stack are given together, or neither")
        return self


class Scope(_Strict):
    """How far a run was asked to go, and the verdict on that part alone.

    Attributes:
        until: the last stage that was asked for; null: all of them, so that `verdict` is that of the report.
        verdict: of the stages up to there. A pass is for whoever asked; it is no proof for others to rely on.
    """

    until: StageName | None
    verdict: Verdict


class Report(_Strict):
    """The document.

    Version 2 has `computed_on` and `scope`, and the verdict `not-informative`. An older flagrelease cannot read it, and
    says so by the version. Version 1 stays readable, and counts as it did.

    Attributes:
        manifest_sha256: of the bytes of the `manifest.json` that was validated.
        rules: what was fixed before the run; a pass needs every stage that they name.
        environment: machine and versions, by name.
        commands: the commands that made the report, without anything secret.
        seeds: by what they seed.
        computed_on: what computed the figures of the stages that run a model; empty if none of them ran.
        scope: what this run was asked for.
    """

    schema_version: Literal[1, 2]
    tool: ToolRecord
    manifest_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    chip: str
    verdict: Verdict
    rules: ValidationRules
    stages: tuple[Stage, ...] = Field(min_length=1)
    benchmarks: tuple[Benchmark, ...]
    environment: dict[str, str] = {}
    commands: tuple[str, ...] = ()
    seeds: dict[str, int] = {}
    computed_on: tuple[ComputedOn, ...] | None = None
    scope: Scope | None = None

    @property
    def computed_where(self) -> str:
        """Where the figures were computed, in a line; of a report of version 1 what its environment says."""
        if self.computed_on is not None:
            return say_computed_on(self.computed_on)
        return f"computed on {self.environment.get('device', 'a device that the report does not name')}"

    @property
    def asked_verdict(self) -> Verdict:
        """The verdict on what this run was asked for."""
        return self.verdict if self.scope is None else self.scope.verdict

    @property
    def weights_proved(self) -> bool:
        """Whether the weights were compared with their source."""
        return any(map(proves_weights, self.stages))

    @model_validator(mode="after")
    def _has_what_its_version_has(self) -> Report:
        for name in ("computed_on", "scope"):
            if (getattr(self, name) is None) != (self.schema_version == 1):
                raise ValueError(f"{name} belongs to version 2 of the report, which must have it")
        return self

    @model_validator(mode="after")
    def _verdict_follows(self) -> Report:
        if self.verdict != (followed := verdict_of(self.rules, self.stages, self.benchmarks)):
            raise ValueError(f"the verdict is {self.verdict}; stages and benchmarks say {followed}")
        if self.scope is not None:
            followed = verdict_of(self.rules, self.stages, self.benchmarks, self.scope.until)
            if self.scope.verdict != followed:
                raise ValueError(f"the verdict on what was asked is {self.scope.verdict}; its stages say {followed}")
        return self


def verdict_of(
    rules: ValidationRules,
    stages: Sequence[Stage],
    benchmarks: Sequence[Benchmark],
    until: StageName | None = None,
) -> Verdict:
    """fail if anything failed; pass if every stage that the rules ask for passed and nothing is left undecided.

    With `until` the stages behind it are not needed, and it is itself, also where the rules do not ask for it.

    What is not informative counts as little as what was not run: a pass needs it decided only where the rules ask for
    it.
    """
    parts = [stage.verdict for stage in stages] + [benchmark.verdict for benchmark in benchmarks]
    if "fail" in parts:
        return "fail"
    needed = set(rules.stages)
    if until is not None:
        needed = needed.intersection(STAGES[: STAGES.index(until)]) | {until}
    passed = {stage.name for stage in stages if stage.verdict == "pass"}
    return "pass" if passed.issuperset(needed) and "cannot-tell" not in parts else "cannot-tell"


def together(verdicts: Iterable[PartVerdict]) -> PartVerdict:
    """The verdict of a stage from those of its parts: a fault counts most, and a pass needs every part to pass.

    Of no parts at all nothing was learnt: not informative.
    """
    found = set(verdicts)
    order: tuple[PartVerdict, ...] = ("fail", "cannot-tell", "not-informative", "pass")
    return next((verdict for verdict in order if verdict in found), "not-informative")


def parse_report(content: bytes, name: str) -> Report:
    """Check the bytes of a report; `name` is for the message.

    Raises:
        VerificationError: it does not follow the contract.
    """
    try:
        return Report.model_validate_json(content)
    except ValidationError as error:
        raise VerificationError(f"{name}: {first_problem(error)}") from error


def read_passing_report(path: Path, manifest_sha256: str, chip: str) -> tuple[Report, bytes]:
    """The report and its bytes, if it says that this manifest passed on this chip.

    Raises:
        VerificationError: there is none, it is of another manifest or chip, or its verdict is not "pass".
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise VerificationError(f"{path}: no report; validate the release first") from None
    report = parse_report(content, str(path))
    if report.manifest_sha256 != manifest_sha256:
        raise VerificationError(
            f"{path}: is of manifest {report.manifest_sha256[:12]}, the release has {manifest_sha256[:12]}: "
            "another release, or changed since; validate it again"
        )
    if report.chip != chip:
        raise VerificationError(f"{path}: is of chip {report.chip!r}, not {chip!r}")
    if report.verdict != "pass":
        raise VerificationError(f"{path}: the verdict is {report.verdict!r}; only a release that passed is published")
    return report, content
