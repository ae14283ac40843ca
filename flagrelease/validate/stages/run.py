"""`validate`: runs the stages in order, each at most once, and writes the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from flagrelease import __version__
from flagrelease.device import Device
from flagrelease.durable.files import write_whole
from flagrelease.ranks.job import is_leader
from flagrelease.records.manifest import ToolRecord
from flagrelease.records.report import Report, Scope, Stage, verdict_of
from flagrelease.records.rules import STAGES, StageName
from flagrelease.validate.invariance.runner import InvarianceStage
from flagrelease.validate.page.page import render_page
from flagrelease.validate.preflight.runner import PreflightStage
from flagrelease.validate.stages.computing import computer, computers
from flagrelease.validate.stages.environment import describe_endpoint, describe_environment
from flagrelease.validate.stages.file_stages import IntegrityStage, WeightsStage
from flagrelease.validate.stages.logits_stage import LogitsStage
from flagrelease.validate.stages.long_context import LongContextStage
from flagrelease.validate.stages.model_stages import BehaviourStage, BenchmarksStage, StageInputs
from flagrelease.validate.stages.port import Port
from flagrelease.validate.stages.preconditions import Prepared, with_all_questions
from flagrelease.validate.stages.request import ValidationRequest
from flagrelease.validate.stages.stage import FILE_STAGES, Outcome, StageRunner, Watch
from flagrelease.validate.stages.state import State

REPORT_NAME, PAGE_NAME = "report.json", "report.html"
BEFORE_BENCHMARKS = STAGES[: STAGES.index("benchmarks")]


def validate(ready: Prepared, watch: Watch) -> Report | None:
    """Validate a release, or resume its validation: finished stages are taken as they are.

    Writes `report.json` and `report.html` into `request.out`; killed at any moment and called again it writes the same
    bytes. A stage that fails stops those behind it. Under torchrun every rank calls this.

    Returns:
        The report; None on a rank that only holds a part of the model.

    Raises:
        FlagReleaseError: as the stages say, or `request.out` is of another validation; nothing that was finished is
            lost.
    """
    request, device = ready.request, ready.device
    with ExitStack() as stack:
        port: Port | str = device if isinstance(device, str) else _open_port(request, device)
        if isinstance(port, str) and not is_leader():
            return None  # nothing to hold a part of
        given = StageInputs(ready, port)
        if isinstance(port, Port) and not is_leader():
            stack.enter_context(port)
            stage = LogitsStage(given)
            port.follow(lambda model: stage.compute(model, watch))
            return None
        environment = describe_environment(None if isinstance(device, str) else device)
        if request.until not in FILE_STAGES:
            environment |= describe_endpoint(request.endpoint)
        state = stack.enter_context(open_state(request, environment))
        if _asks_benchmarks(BenchmarksStage(given), state, request):
            given = StageInputs(with_all_questions(ready), port)
        if isinstance(port, Port):
            stack.enter_context(port)
        outcomes = _run_stages(_runners(given), state, ready, watch)
        return _write_report(request, state.environment, outcomes)


def open_state(request: ValidationRequest, environment: Mapping[str, str]) -> State:
    """Begin or resume the folder of a validation, and lock it.

    Raises:
        ResourceError: as `State` says.
    """
    return State(request.out, request.release.manifest_sha256, request.chip.id, request.rules, environment)


def file_runners(request: ValidationRequest) -> list[StageRunner]:
    """The two stages that need only files."""
    return [IntegrityStage(request), WeightsStage(request)]


def model_runners(ready: Prepared, port: Port | str) -> list[StageRunner]:
    """The stages that need somebody who answers: `port`, or why there is none."""
    return [runner for runner in _runners(StageInputs(ready, port)) if runner.name not in FILE_STAGES]


def _open_port(request: ValidationRequest, device: Device) -> Port:
    release = request.release
    return Port(release.folder, release.manifest.target.dtype, device, request.operators, request.rows)


def _runners(given: StageInputs) -> list[StageRunner]:
    stages = (PreflightStage, LogitsStage, InvarianceStage, LongContextStage, BenchmarksStage, BehaviourStage)
    return [*file_runners(given.ready.request), *(stage(given) for stage in stages)]


def _asks_benchmarks(stage: BenchmarksStage, state: State, request: ValidationRequest) -> bool:
    """Whether the questions of the benchmarks will be needed, unless an earlier stage fails."""
    if request.until in BEFORE_BENCHMARKS or stage.missing() is not None:
        return False
    return state.finished(stage.name, stage.inputs()) is None


def _run_stages(runners: Sequence[StageRunner], state: State, ready: Prepared, watch: Watch) -> list[Outcome]:
    request, outcomes = ready.request, list[Outcome]()
    stopped: str | None = None
    for runner in runners:
        reason = stopped or _not_asked_for(runner.name, request.until) or runner.missing()
        if reason is not None:
            stage = Stage(name=runner.name, verdict="not-run", detail=f"Not run: {reason}.")
            outcomes.append(Outcome(stage=stage, inputs={}))
        else:
            outcome = state.finished(runner.name, runner.inputs()) or _run_stage(runner, state, ready, watch)
            outcomes.append(outcome)
            if outcome.stage.verdict == "fail":
                stopped = f"the stage {runner.name} failed"
    return outcomes


def _not_asked_for(name: StageName, until: StageName | None) -> str | None:
    if until is None or STAGES.index(name) <= STAGES.index(until):
        return None
    return f"not asked for (--until {until})"


def _run_stage(runner: StageRunner, state: State, ready: Prepared, watch: Watch) -> Outcome:
    """Run a stage and record it, unless a server could not do what it needs: another time it may.

    Nor is a pre-flight recorded that failed: it judges how the server was started and says the line to change, after
    which the same command asks again.
    """
    found = runner.run(watch)
    if found.stage.verdict == "not-run":
        return found
    by = computer(runner.name, ready.request.chip, ready.device, ready.request.endpoint)
    found = found.model_copy(update={"computed_on": by})
    return found if (runner.name, found.stage.verdict) == ("preflight", "fail") else state.finish(found)


def _write_report(request: ValidationRequest, environment: dict[str, str], outcomes: Sequence[Outcome]) -> Report:
    stages = tuple(outcome.stage for outcome in outcomes)
    benchmarks = tuple(benchmark for outcome in outcomes for benchmark in outcome.benchmarks)
    report = Report(
        schema_version=2,
        tool=ToolRecord(version=__version__),
        manifest_sha256=request.release.manifest_sha256,
        chip=request.chip.id,
        verdict=verdict_of(request.rules, stages, benchmarks),
        rules=request.rules,
        stages=stages,
        benchmarks=benchmarks,
        environment=environment,
        commands=(request.command,),
        seeds={name: seed for outcome in outcomes for name, seed in outcome.seeds.items()},
        computed_on=computers(outcomes),
        scope=Scope(until=request.until, verdict=verdict_of(request.rules, stages, benchmarks, request.until)),
    )
    write_whole(request.out / REPORT_NAME, report_bytes(report))
    write_whole(request.out / PAGE_NAME, render_page(report, request.release.manifest).encode())
    return report


def report_bytes(report: Report) -> bytes:
    """`report.json`: keys in the order of the contract, one space of indent, one newline at the end."""
    return json.dumps(report.model_dump(mode="json"), indent=1, ensure_ascii=False).encode() + b"\n"
